"""`data.backend=fast` against `pil`, the released pipeline, on images with the statistics of photographs.

    DINO_EXP_PHOTOS=/folder/of/photographs pytest tests/data/test_augment_reference.py -s

uses up to 200 photographs instead of the generated images and prints the differences.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop

from dino_exp.data import augment
from dino_exp.data.crops import RATIO
from dino_exp.data.decoding import Decoding
from dino_exp.data.loader import CropBatches
from dino_exp.data.pil_reference import ReleasedPipeline
from dino_exp.data.source import read_image
from tests.data.sources import Album, multi_crop, released_augment

SIDE = 96


def natural_image(seed: int) -> torch.Tensor:
    """Draw 1/f noise per channel under discs of saturated colors, and an overexposed corner."""
    rng = np.random.default_rng(seed)
    height, width = (160, 200) if seed % 2 else (210, 150)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, height, width))) / frequency).real
    noise /= noise.std((1, 2), keepdims=True)
    shared = noise.mean(0, keepdims=True)  # natural channels are alike
    image = 118 + 45 * (0.8 * shared + 0.6 * noise)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(6):
        row, column, radius = rng.uniform([0, 0, 8], [height, width, 40])
        inside = np.hypot(rows - row, columns - column) < radius
        image[:, inside] = rng.choice([0, 30, 128, 255], size=(3, 1))
    image[:, :20, :30] += 150
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def images() -> list[torch.Tensor]:
    folder = os.environ.get("DINO_EXP_PHOTOS")
    if not folder:
        return [natural_image(seed) for seed in range(24)]
    paths = [path for path in sorted(Path(folder).iterdir()) if path.is_file()]
    photographs = [read_image(path, Decoding(3)) for path in paths[:200]]
    return [image for image in photographs if min(image.shape[1:]) >= SIDE + 20]


GLOBAL_CROPS = multi_crop(global_size=SIDE, local_number=0)


def step_table(columns: dict[int, tuple[float, float]], n: int) -> np.ndarray:
    """Return parameters of n crops that only do the given columns, drawn between their bounds."""
    table = np.zeros((n, 11), np.float32)
    table[:, augment.BRIGHTNESS : augment.HUE] = 1
    for column, bounds in columns.items():
        table[:, column] = np.random.default_rng(column).uniform(*bounds, n)
    return table


ALWAYS = (1, 1)
# Parameters, then bounds in byte values: largest and mean difference of pixels, difference of the mean and
# of the standard deviation per channel, and of the 32-bin histograms as the share of pixels that moved.
# Pillow's blends round down, by half a value on average; its hue is computed in bytes, and its blur is three
# box filters with other edges.
STEPS: dict[str, tuple[dict[int, tuple[float, float]], tuple[float, ...]]] = {
    "flip": ({augment.FLIP: ALWAYS}, (0.01, 0.01, 0.01, 0.01, 0.001)),
    "brightness": ({augment.JITTER: ALWAYS, augment.BRIGHTNESS: (0.6, 1.4)}, (1.01, 0.55, 0.55, 0.2, 0.05)),
    "contrast": ({augment.JITTER: ALWAYS, augment.CONTRAST: (0.6, 1.4)}, (1.51, 0.6, 0.55, 0.2, 0.03)),
    "saturation": ({augment.JITTER: ALWAYS, augment.SATURATION: (0.8, 1.2)}, (1.51, 0.6, 0.5, 0.2, 0.03)),
    "hue": ({augment.JITTER: ALWAYS, augment.HUE: (-0.1, 0.1)}, (14, 0.6, 0.2, 0.2, 0.08)),
    "gray": ({augment.GRAY: ALWAYS}, (0.51, 0.3, 0.05, 0.1, 0.001)),
    "blur": ({augment.SIGMA: (0.1, 2.0)}, (40, 0.6, 0.05, 0.1, 0.01)),
    "solarize": ({augment.SOLARIZE: ALWAYS}, (0.01, 0.01, 0.01, 0.01, 0.001)),
}


@pytest.mark.parametrize("name", STEPS)
def test_each_step_matches_the_released_one(name: str, images: list[torch.Tensor]) -> None:
    columns, bounds = STEPS[name]
    table = step_table(columns, len(images))
    others = {"brightness", "contrast", "saturation", "hue"} - {name}
    augmentation = released_augment(**dict.fromkeys(others, 0.0))
    released = ReleasedPipeline(GLOBAL_CROPS, augmentation)
    box = np.array([[20, 10, SIDE, SIDE]] * 2)
    cut = torch.stack([GLOBAL_CROPS.cut(image, box)[0] for image in images])
    pairs = zip(images, table, strict=True)
    reference = torch.stack([released(image, box, np.stack([row] * 2))[0] for image, row in pairs])
    ours = augmentation(cut, torch.from_numpy(table)) * 255
    difference = (ours - reference).abs()
    found = (float(difference.max()), float(difference.mean()), *statistics(ours, reference.float()))
    print(f"\n{name}: largest {found[0]:.2f}, mean {found[1]:.3f},", described(found[2:]))
    assert all(value <= bound for value, bound in zip(found, bounds, strict=True)), found
    assert (ours - cut).abs().mean() > 1  # the step did something


def statistics(ours: torch.Tensor, reference: torch.Tensor) -> tuple[float, float, float]:
    """Return the largest differences over the channels of mean, standard deviation and 32-bin histogram."""
    a, b = (x.transpose(0, 1).flatten(1) for x in (ours, reference))
    histograms = [
        # Bins begin half a value before a byte, so that the rounding of one side alone changes none.
        torch.stack([torch.histc(c + 0.5, 32, 0, 256) / c.numel() for c in x])
        for x in (a, b)
    ]
    return (
        float((a.mean(1) - b.mean(1)).abs().max()),
        float((a.std(1) - b.std(1)).abs().max()),
        float((histograms[0] - histograms[1]).abs().sum(1).max() / 2),
    )


def described(found: tuple[float, ...]) -> str:
    return "means {:.3f}, standard deviations {:.3f}, histograms {:.4f} apart".format(*found)


def test_both_backends_make_the_same_crops_of_one_sample(images: list[torch.Tensor]) -> None:
    augmentation = released_augment()
    crops = multi_crop(global_size=SIDE, local_size=48, local_number=4)
    fast, pil = (
        CropBatches(Album(images), crops, augmentation, seed=3, backend=backend)[1, list(range(len(images)))]
        for backend in ("fast", "pil")
    )
    assert pil.parameters.shape == (6, len(images), 0)
    parts = ((0, fast.global_crops, pil.global_crops), (2, fast.local_crops, pil.local_crops))
    for first, ours, theirs in parts:
        parameters = fast.parameters[first : first + len(ours)].flatten(0, 1)
        ours = augmentation(ours.flatten(0, 1), parameters) * 255
        reference = theirs.flatten(0, 1).float()
        # Solarization turns one unit at the threshold into 255, which shows in the mean.
        plain = parameters[:, augment.SOLARIZE] == 0
        difference = (ours - reference).abs()
        found = statistics(ours, reference)
        print(
            f"\n{ours.shape[-1]} px: mean difference {difference.mean():.3f}, without solarization "
            f"{difference[plain].mean():.3f}, 99% {np.percentile(difference[plain], 99):.2f},",
            described(found),
        )
        assert difference[plain].mean() < 1.4
        assert np.percentile(difference[plain], 99) < 6.5
        assert difference.mean() < 1.6
        assert found[0] < 1.3  # the sum of what the blends round down
        assert found[1] < 0.2
        assert found[2] < 0.04


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the greatest distance of two samples' distribution functions (Kolmogorov and Smirnov)."""
    at = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(x), at, side="right") / len(x) for x in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


DRAWS = 5000
CHANCE = 1.95 * (2 / DRAWS) ** 0.5
"""The distance that two samples of one distribution exceed once in a thousand times."""


@pytest.mark.parametrize(("height", "width"), [(390, 460), (375, 500), (300, 900)])
def test_boxes_are_distributed_as_torchvision_draws_them(height: int, width: int) -> None:
    rng, crops = np.random.default_rng(0), multi_crop(global_size=224, local_size=96, local_number=1)
    ours = np.stack([crops.boxes(rng.random((3, crops.uniforms)), height, width) for _ in range(DRAWS)])
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    for crop, scale in ((1, (0.4, 1.0)), (2, (0.05, 0.4))):
        theirs = np.array([RandomResizedCrop.get_params(image, scale, RATIO) for _ in range(DRAWS)])
        for number, name in enumerate(("top", "left", "height", "width")):
            assert distance(ours[:, crop, number], theirs[:, number]) < CHANCE, name
        area, shape = (
            [f(x[:, 2], x[:, 3]) for x in (ours[:, crop], theirs)] for f in (np.multiply, np.divide)
        )
        assert distance(*area) < CHANCE
        assert distance(*shape) < CHANCE


def test_jitter_is_distributed_as_torchvision_draws_it() -> None:
    augmentation = released_augment()
    ours = augmentation.parameters(np.random.default_rng(1).random((2, DRAWS, augmentation.uniforms)))[0]
    torch.manual_seed(1)
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    drawn = [
        jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        for _ in range(DRAWS)
    ]
    for number in range(4):
        theirs = np.array([values[1 + number] for values in drawn])
        assert distance(ours[:, augment.BRIGHTNESS + number], theirs) < CHANCE
    numbers = {order: number for number, order in enumerate(augment.ORDERS)}
    orders = np.array([numbers[tuple(values[0].tolist())] for values in drawn])
    assert distance(ours[:, augment.ORDER], orders) < CHANCE
    share = np.bincount(ours[:, augment.ORDER].astype(int), minlength=24) / DRAWS
    np.testing.assert_allclose(share, 1 / 24, atol=0.012)


def test_released_pipeline_cuts_and_resizes_as_the_released_code(images: list[torch.Tensor]) -> None:
    crops, image = GLOBAL_CROPS, images[0]
    box = crops.boxes(np.random.default_rng(2).random((2, crops.uniforms)), *image.shape[1:])
    ours = ReleasedPipeline(crops, released_augment())(image, box, step_table({}, 2))
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    transform = RandomResizedCrop(SIDE, interpolation=InterpolationMode.BICUBIC)
    for crop, drawn in zip(ours, box.tolist(), strict=True):
        transform.get_params = lambda *_, drawn=drawn: drawn
        assert np.array_equal(crop.permute(1, 2, 0), np.asarray(transform(pillow)))
