"""Boxes are drawn as torchvision draws them, and cut as Pillow resizes."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

from tests.data.sources import multi_crop


def test_boxes_have_the_distribution_of_torchvision() -> None:
    crops, rng = multi_crop(), np.random.default_rng(0)
    height, width, n = 60, 100, 4000
    ours = np.stack([crops.boxes(rng.random((4, crops.uniforms)), height, width) for _ in range(n)])
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    for crop, scale in ((0, (0.4, 1.0)), (3, (0.05, 0.4))):
        theirs = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)])
        np.testing.assert_allclose(ours[:, crop].mean(0), theirs.mean(0), rtol=0.05, atol=0.6)
        np.testing.assert_allclose(ours[:, crop].std(0), theirs.std(0), rtol=0.06, atol=0.4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (50, 1), (7, 300), (33, 31)])
def test_boxes_are_inside_images_of_any_shape(height: int, width: int) -> None:
    crops, rng = multi_crop(), np.random.default_rng(1)
    for _ in range(50):
        boxes = crops.boxes(rng.random((4, crops.uniforms)), height, width)
        top, left, h, w = boxes.T
        for start, side, limit in ((top, h, height), (left, w, width)):
            assert (side >= 1).all()
            assert (start >= 0).all()
            assert (start + side <= limit).all()


def test_cut_matches_pillows_antialiased_bicubic() -> None:
    rng = np.random.default_rng(2)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 9, 3), np.uint8)).resize((90, 120), 2))
    image = torch.from_numpy(smooth.copy()).permute(2, 0, 1)
    boxes = np.array([[10, 5, 80, 70], [0, 0, 120, 90], [3, 4, 20, 30], [90, 60, 16, 16]])
    for crop, (top, left, h, w), size in zip(
        multi_crop().cut(image, boxes), boxes, (32, 32, 16, 16), strict=True
    ):
        box = (left, top, left + w, top + h)
        theirs = np.asarray(Image.fromarray(smooth).crop(box).resize((size, size), Image.Resampling.BICUBIC))
        assert np.abs(crop.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cut_equals_torchvisions_resized_crop_bit_for_bit(layout: torch.memory_format) -> None:
    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.integers(0, 256, (1, 3, 90, 130), np.uint8))
    image = image.contiguous(memory_format=layout)[0]
    crops = multi_crop()
    for _ in range(10):
        boxes = crops.boxes(rng.random((4, crops.uniforms)), 90, 130)
        for crop, box, size in zip(crops.cut(image, boxes), boxes.tolist(), crops.sizes, strict=True):
            theirs = resized_crop(
                image, *box, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True
            )
            assert torch.equal(crop, theirs)


def test_an_image_is_shrunk_as_far_as_its_smallest_box_allows() -> None:
    crops = multi_crop()  # crops of 32 and 16 pixels
    large, small = [0, 0, 800, 900], [5, 5, 141, 300]
    assert crops.factor(np.array([large, large, small, small])) == 8
    assert crops.factor(np.array([large, [0, 0, 300, 281], small, small])) == 4
    assert crops.factor(np.array([large, large, small, [5, 5, 140, 300]])) == 4
    assert crops.factor(np.array([large, large, small, [5, 5, 70, 300]])) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_of_a_shrunk_image_have_the_position_of_those_of_the_full_one(channels: int) -> None:
    """Linear ramps show the position of a crop: a shift by a quarter of its pixels would change them by 2."""
    rows, columns = torch.meshgrid(torch.arange(405), torch.arange(610), indexing="ij")
    full = torch.stack([rows * 0.6, columns * 0.4, 250 - rows * 0.3 - columns * 0.2])[:channels]
    padded = torch.nn.functional.pad(full[None], [0, 6, 0, 3], mode="replicate")
    shrunk = torch.nn.functional.avg_pool2d(padded, 8)[0].round().byte()
    crops, rng = multi_crop(), np.random.default_rng(4)
    for _ in range(20):
        boxes = crops.boxes(rng.random((4, crops.uniforms)), 405, 610)
        ours = crops.cut_shrunk(shrunk, boxes, 8)
        for crop, reference in zip(ours, crops.cut(full.round().byte(), boxes), strict=True):
            assert crop.shape == reference.shape
            inner = (crop.int() - reference.int())[:, 2:-2, 2:-2]
            assert inner.abs().max() <= 1
