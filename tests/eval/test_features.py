"""How images are resized, cropped and normalized."""

import numpy as np
import pytest
import torch
from PIL import Image

from dino_exp.errors import UserError
from dino_exp.eval.features import LONGEST, normalize, resize_and_crop
from tests.eval.subjects import random_images


def test_resize_and_crop_is_the_released_codes() -> None:
    # Resize(256, bicubic) and CenterCrop(224) of Pillow, on a smooth image of uneven sides.
    y, x = np.mgrid[0:300, 0:407]
    array = np.stack([x * 0.6, y * 0.8, 127 + 90 * np.sin(x / 9) * np.cos(y / 7)], axis=-1).astype(np.uint8)
    short, long = 256, int(256 * 407 / 300)
    left, top = round((long - 224) / 2), (short - 224) // 2
    resized = Image.fromarray(array).resize((long, short), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)

    got = resize_and_crop(torch.from_numpy(array).permute(2, 0, 1), 224, 0.875).permute(1, 2, 0)
    assert got.dtype == torch.uint8
    assert np.abs(got.numpy().astype(int) - expected).max() <= 1


def test_images_that_have_the_size_are_not_touched() -> None:
    images = random_images(2)
    assert torch.equal(resize_and_crop(images, 8, 1.0), images)
    assert resize_and_crop(images, 8, 0.875).shape == images.shape
    assert not torch.equal(resize_and_crop(images, 8, 0.875), images)


@pytest.mark.parametrize("shape", [(1, 1, -1), (1, -1, 1)])
def test_of_a_strip_only_the_center_is_resized(shape: tuple[int, ...]) -> None:
    strip = torch.zeros(60_000, dtype=torch.uint8)  # 7.7 million pixels long if all of it were enlarged
    strip[29_990:30_010] = torch.arange(0, 200, 10)
    center = strip[30_000 - LONGEST // 2 : 30_000 + LONGEST // 2]
    found, expected = (resize_and_crop(each.view(shape), 128, 1.0) for each in (strip, center))
    assert torch.equal(found, expected)
    assert (int(found.min()), int(found.max())) == (90, 100)


def test_normalize_asks_for_one_value_per_channel() -> None:
    images = torch.tensor([[[[0]], [[255]]]], dtype=torch.uint8)
    assert normalize(images, [0.5, 0.0], [0.5, 2.0]).flatten().tolist() == [-1.0, 0.5]
    with pytest.raises(UserError, match=r"have 3 and 3 values.*2 channels"):
        normalize(images, [0.5] * 3, [0.5] * 3)
