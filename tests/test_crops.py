"""Boxes are drawn as torchvision draws them, and cut as Pillow resizes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from dino_exp.crops import MultiCrop


def multi_crop(**changes: object) -> MultiCrop:
    released = dict(
        global_size=32, global_scale=[0.4, 1.0], local_size=16, local_number=2, local_scale=[0.05, 0.4]
    )
    return MultiCrop(**(released | changes))


def test_boxes_have_torchvision_s_distribution():
    crops, rng = multi_crop(), np.random.default_rng(0)
    height, width, n = 60, 100, 4000
    ours = np.stack([crops.boxes(rng.random((4, crops.uniforms)), height, width) for _ in range(n)])
    torch.manual_seed(0)
    picture = torch.zeros(3, height, width)
    for crop, scale in ((0, (0.4, 1.0)), (3, (0.05, 0.4))):
        theirs = np.array([RandomResizedCrop.get_params(picture, scale, (3 / 4, 4 / 3)) for _ in range(n)])
        np.testing.assert_allclose(ours[:, crop].mean(0), theirs.mean(0), rtol=0.05, atol=0.6)
        np.testing.assert_allclose(ours[:, crop].std(0), theirs.std(0), rtol=0.06, atol=0.4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (7, 300), (33, 31)])
def test_boxes_lie_in_the_picture_however_odd_it_is(height: int, width: int):
    crops, rng = multi_crop(), np.random.default_rng(1)
    for _ in range(50):
        boxes = crops.boxes(rng.random((4, crops.uniforms)), height, width)
        top, left, h, w = boxes.T
        assert (h >= 1).all()
        assert (w >= 1).all()
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + h <= height).all()
        assert (left + w <= width).all()


def test_cut_is_pillow_s_antialiased_bicubic():
    rng = np.random.default_rng(2)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).resize((90, 120), 2))
    picture = torch.from_numpy(smooth.copy()).permute(2, 0, 1)
    boxes = np.array([[10, 5, 80, 70], [0, 0, 120, 90], [3, 4, 20, 30], [90, 60, 16, 16]])
    for crop, (top, left, h, w), size in zip(
        multi_crop().cut(picture, boxes), boxes, (32, 32, 16, 16), strict=True
    ):
        box = (left, top, left + w, top + h)
        theirs = np.asarray(Image.fromarray(smooth).crop(box).resize((size, size), Image.BICUBIC))
        assert np.abs(crop.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1
