"""Each step of the augmentation against Pillow or torchvision, and parameters against their probabilities."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import functional as torchvision_transforms

from dino_exp.data import augment, crop_steps
from tests.data.sources import noise, released_augment

NO_STEP = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.float32)


def parameters(**columns: float) -> torch.Tensor:
    table = NO_STEP.clone()
    for name, value in columns.items():
        table[0, getattr(augment, name.upper())] = value
    return table


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return noise(6, 6).resize((48, 48), Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]


STEPS: dict[str, tuple[dict[str, float], Callable[[Image.Image], Image.Image], float]] = {
    "flip": (dict(flip=1), ImageOps.mirror, 0.1),
    "brightness": (dict(brightness=1.35), lambda im: ImageEnhance.Brightness(im).enhance(1.35), 1.1),
    "contrast": (dict(contrast=0.65), lambda im: ImageEnhance.Contrast(im).enhance(0.65), 1.5),
    "saturation": (dict(saturation=1.2), lambda im: ImageEnhance.Color(im).enhance(1.2), 1.5),
    "hue": (dict(hue=18 / 255), lambda im: torchvision_transforms.adjust_hue(im, 18 / 255), 7.0),
    "gray": (dict(gray=1), lambda im: im.convert("L").convert("RGB"), 1.1),
    "solarize": (dict(solarize=1), ImageOps.solarize, 0.1),
}


@pytest.mark.parametrize("name", STEPS)
def test_each_step_matches_pillow(name: str, photo: Image.Image) -> None:
    columns, reference, tolerance = STEPS[name]
    is_jitter = name in ("brightness", "contrast", "saturation", "hue")
    ours = released_augment()(as_tensor(photo), parameters(jitter=is_jitter, **columns)) * 255
    difference = (ours - as_tensor(reference(photo))).abs()
    assert difference.max() <= tolerance  # of 255; Pillow rounds, and its hue has 256 steps
    assert (ours - as_tensor(photo)).abs().max() > 5  # the step did something


def test_blur_is_a_gaussian(photo: Image.Image) -> None:
    for sigma in (0.5, 1.0, 2.0):
        ours = released_augment()(as_tensor(photo), parameters(sigma=sigma))
        exact = torchvision_transforms.gaussian_blur(as_tensor(photo) / 255, [25, 25], [sigma, sigma])
        inner = (slice(None), slice(None), slice(13, -13), slice(13, -13))  # edges are padded differently
        assert (ours[inner] - exact[inner]).abs().max() < 2e-3
        theirs = as_tensor(photo.filter(ImageFilter.GaussianBlur(sigma)))  # three box blurs
        assert (ours * 255 - theirs).abs().mean() < 1.0


def test_without_a_chosen_step_crops_are_only_normalized(photo: Image.Image) -> None:
    ours = released_augment(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])(as_tensor(photo), NO_STEP)
    expected = torchvision_transforms.normalize(as_tensor(photo) / 255, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    torch.testing.assert_close(ours, expected)


def test_rotation_turns_by_the_angle_and_keeps_the_flip(photo: Image.Image) -> None:
    rotating = released_augment(rotation=180.0)
    quarter = rotating(as_tensor(photo), parameters(rotation=90))
    straight = as_tensor(photo) / 255
    assert min((quarter - torch.rot90(straight, turns, (2, 3))).abs().max() for turns in (1, 3)) < 1e-3
    torch.testing.assert_close(
        rotating(as_tensor(photo), parameters(flip=1)), straight.flip(-1), atol=1e-4, rtol=0
    )


def test_order_of_the_jitter_is_followed(photo: Image.Image) -> None:
    x = as_tensor(photo) / 255
    first, second = torch.tensor([1.4]), torch.tensor([0.6])
    contrast_last = crop_steps.contrast(crop_steps.brightness(x, first), second)
    brightness_last = crop_steps.brightness(crop_steps.contrast(x, second), first)
    assert (contrast_last - brightness_last).abs().max() > 0.05
    columns = dict(jitter=1, brightness=1.4, contrast=0.6)
    for order, expected in ((0, contrast_last), (23, brightness_last)):
        ours = released_augment()(as_tensor(photo), parameters(order=order, **columns))
        torch.testing.assert_close(ours, expected)


def test_a_crop_does_not_depend_on_its_batch(photo: Image.Image) -> None:
    augmentation = released_augment(rotation=30.0)
    uniform = np.random.default_rng(3).random((4, 5, augmentation.uniforms))
    table = torch.from_numpy(augmentation.parameters(uniform)).flatten(0, 1)
    crops = as_tensor(photo).expand(20, -1, -1, -1).contiguous()
    together = augmentation(crops, table)
    alone = torch.cat([augmentation(crops[i : i + 1], table[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_parameters_have_the_released_probabilities() -> None:
    augmentation = released_augment()
    table = augmentation.parameters(np.random.default_rng(4).random((4, 20000, augmentation.uniforms)))
    share = (table != 0).mean(1)
    np.testing.assert_allclose(share[:, augment.FLIP], 0.5, atol=0.02)
    np.testing.assert_allclose(share[:, augment.JITTER], 0.8, atol=0.02)
    np.testing.assert_allclose(share[:, augment.GRAY], 0.2, atol=0.02)
    np.testing.assert_allclose(share[:, augment.SIGMA], [1.0, 0.1, 0.5, 0.5], atol=0.02)
    np.testing.assert_allclose(share[:, augment.SOLARIZE], [0, 0.2, 0, 0], atol=0.02)
    blurred = table[0, :, augment.SIGMA]
    assert blurred.min() >= 0.1
    assert blurred.max() <= 2.0
    assert abs(blurred.mean() - 1.05) < 0.02
    for column, (low, high) in {
        augment.BRIGHTNESS: (0.6, 1.4),
        augment.CONTRAST: (0.6, 1.4),
        augment.SATURATION: (0.8, 1.2),
        augment.HUE: (-0.1, 0.1),
    }.items():
        values = table[..., column]
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high + 1e-6
    assert set(np.unique(table[..., augment.ORDER])) == set(range(24))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_that_are_not_rgb_skip_the_steps_that_need_color(channels: int) -> None:
    augmentation = released_augment(channels=channels)
    assert augmentation.skipped_steps == ["saturation", "hue", "grayscale"]
    assert released_augment().skipped_steps == []
    uniform = np.random.default_rng(5).random((2, 8, augmentation.uniforms))
    crops = torch.randint(0, 256, (16, channels, 8, 8), dtype=torch.uint8)
    result = augmentation(crops, torch.from_numpy(augmentation.parameters(uniform)).flatten(0, 1))
    assert result.shape == (16, channels, 8, 8)
    assert result.isfinite().all()


def test_the_steps_follow_each_other_in_the_released_order(photo: Image.Image) -> None:
    columns = dict(
        flip=1, jitter=1, brightness=1.3, contrast=0.7, saturation=1.2, hue=0.05, gray=1, sigma=0.8
    )
    table = parameters(order=0, solarize=1, **columns)
    x = (as_tensor(photo) / 255).flip(-1)
    x = crop_steps.brightness(x, table[:, augment.BRIGHTNESS])
    x = crop_steps.contrast(x, table[:, augment.CONTRAST])
    x = crop_steps.saturation(x, table[:, augment.SATURATION])
    x = crop_steps.hue(x, table[:, augment.HUE])
    x = torch.tensor(torchvision_transforms.rgb_to_grayscale(x, 3).numpy())
    x = crop_steps.gaussian_blur(x, crop_steps.gaussian_kernel(table[:, augment.SIGMA], radius=6))
    x = crop_steps.solarize(x)
    expected = torchvision_transforms.normalize(x, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    ours = released_augment(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])(as_tensor(photo), table)
    torch.testing.assert_close(ours, expected, atol=2e-3, rtol=0)
