"""The steps that the released code lacks: what they do, equal in both backends, without moving the others."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as torchvision_transforms

from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.data import augment
from dino_exp.data.augment import Augment
from dino_exp.data.loader import CropBatch, CropBatches
from dino_exp.data.pil_reference import ReleasedPipeline
from dino_exp.seeding import generator
from tests.data.sources import Album, multi_crop, released_augment

FURTHER: dict[str, Any] = dict(vertical_flip=0.5, quarter_turns=0.7, channel_drop=0.2, per_channel=True)


def one_step(augmentation: Augment, **columns: float) -> torch.Tensor:
    """Return parameters of one crop that does only the named steps."""
    table = torch.zeros(1, augmentation.uniforms)
    table[0, augment.BRIGHTNESS : augment.HUE] = 1
    for name, value in columns.items():
        table[0, getattr(augment, name.upper())] = value
    return table


def batch(augmentation: Augment) -> CropBatch:
    images = torch.randint(0, 256, (4, 3, 40, 50), generator=torch.Generator().manual_seed(0))
    return CropBatches(Album(images.byte()), multi_crop(), augmentation, 3, "fast")[2, [3, 0, 1]]


def test_further_steps_are_drawn_last_and_move_no_others() -> None:
    released, further = released_augment(), released_augment(**FURTHER)
    ours, others = batch(released), batch(further)
    assert ours.parameters.shape == (4, 3, 11)
    assert others.parameters.shape == (4, 3, further.uniforms)
    assert torch.equal(others.parameters[..., :11], ours.parameters)
    assert torch.equal(others.global_crops, ours.global_crops)
    assert torch.equal(others.local_crops, ours.local_crops)
    # the layout of the numbers that every run so far was made from
    uniform = generator(3, 2, 0).random((4, multi_crop().uniforms + 11))[:, None, multi_crop().uniforms :]
    assert np.array_equal(ours.parameters[:, 1], released.parameters(uniform)[:, 0])


def test_orientation_and_dropped_channels_are_exact_and_equal_in_both_backends() -> None:
    """Tries all combinations of flips, turns and dropped channels."""
    image = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(1)).byte()
    none = dict(jitter=0.0, gray=0.0, blur=[0.0] * 3, solarize=0.0)
    augmentation = released_augment(**FURTHER | none | dict(per_channel=False))
    drops = [drop for drop in itertools.product((0, 1), repeat=3) if sum(drop) < 3]
    rows = []
    for flip, vertical, turns in itertools.product((0, 1), (0, 1), range(4)):
        row = one_step(augmentation, flip=flip, vertical_flip=vertical, turns=turns)
        for drop in drops:
            row[0, augmentation.dropped] = torch.tensor(drop, dtype=torch.float32)
            rows.append(row[0].clone())
    table = torch.stack(rows)
    crops = multi_crop(global_size=24, local_size=24, local_number=len(rows) - 2)
    box = np.array([[0, 0, 24, 24]] * len(rows))
    before = image.clone()
    ours = (augmentation(image.expand(len(rows), -1, -1, -1), table) * 255).round().byte()
    theirs = torch.stack(ReleasedPipeline(crops, augmentation)(image, box, table.numpy()))
    assert torch.equal(ours, theirs)
    assert torch.equal(image, before)
    kept = ours[:: len(drops)]
    assert all(sorted(crop.flatten().tolist()) == sorted(image.flatten().tolist()) for crop in kept)
    assert len({bytes(crop.numpy().tobytes()) for crop in kept}) == 8  # all symmetries of a square
    assert torch.equal(kept[0], image)
    assert torch.equal(kept[1], torch.rot90(image, 1, (1, 2)))
    assert torch.equal(kept[4], image.flip(1))
    dropped = (ours == 0).all(-1).all(-1)
    assert torch.equal(dropped, torch.tensor(drops * 16) > 0)


def test_further_parameters_have_their_probabilities() -> None:
    augmentation = released_augment(**FURTHER, channels=5)
    table = augmentation.parameters(np.random.default_rng(4).random((4, 20000, augmentation.uniforms)))
    assert abs((table[..., augment.VERTICAL_FLIP] > 0).mean() - 0.5) < 0.01
    share = np.bincount(table[..., augment.TURNS].astype(int).ravel(), minlength=4) / 80000
    np.testing.assert_allclose(share, [0.475, 0.175, 0.175, 0.175], atol=0.01)
    np.testing.assert_allclose((table[..., augmentation.dropped] > 0).mean((0, 1)), [0.2] * 5, atol=0.01)
    factors = np.concatenate([table[..., columns] for columns in augmentation.factors], -1).reshape(-1, 10)
    assert 0.6 <= factors.min() < 0.601
    assert 1.399 < factors.max() <= 1.4001
    assert np.abs(np.corrcoef(factors.T) - np.eye(10)).max() < 0.02
    strong = released_augment(channel_drop=0.99, channels=2)
    table = strong.parameters(np.random.default_rng(5).random((2, 1000, strong.uniforms)))
    assert set((table[..., strong.dropped] > 0).sum(-1).ravel().tolist()) <= {0, 1}


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_jitter_per_channel_is_that_of_each_channel_alone(channels: int) -> None:
    strengths = dict(brightness=0.4, contrast=0.4, saturation=0.0, hue=0.0)
    augmentation = released_augment(per_channel=True, channels=channels, **strengths)
    x = torch.randint(60, 140, (1, channels, 16, 16), generator=torch.Generator().manual_seed(2)).byte()
    table = one_step(augmentation, jitter=1)
    bright, contrast = (torch.linspace(low, 1.3, channels) for low in (0.7, 0.8))
    for columns, factors in zip(augmentation.factors, (bright, contrast), strict=True):
        table[0, columns] = factors
    expected = []
    for channel, b, c in zip(x[0] / 255, bright.tolist(), contrast.tolist(), strict=True):
        brighter = torchvision_transforms.adjust_brightness(channel[None], b)
        expected.append(torchvision_transforms.adjust_contrast(brighter, c))
    torch.testing.assert_close(augmentation(x, table)[0], torch.cat(expected))


@pytest.mark.parametrize("channels", [3, 5])
def test_gray_by_the_average_is_the_mean_of_all_channels(channels: int) -> None:
    augmentation = released_augment(gray_method="average", channels=channels)
    assert "grayscale" not in augmentation.skipped_steps
    x = torch.randint(0, 256, (1, channels, 8, 8), generator=torch.Generator().manual_seed(3)).byte()
    gray = augmentation(x, one_step(augmentation, gray=1)[:, : augmentation.uniforms])
    torch.testing.assert_close(gray, (x / 255).mean(1, keepdim=True).expand_as(gray))


@pytest.mark.parametrize("channels", [1, 3, 10])
@pytest.mark.parametrize("preset", ["microscopy", "multiplex", "satellite"])
def test_presets_fit_any_number_of_channels(preset: str, channels: int) -> None:
    drop = ["augment.channel_drop=0"] if (preset, channels) == ("multiplex", 1) else []
    node = compose(["experiment=debug", f"augment={preset}", *drop]).augment
    numbers = [0.5] * channels
    augmentation: Augment = build(node, channels=channels, mean=numbers, std=numbers)
    assert augmentation.skipped_steps == []
    uniform = np.random.default_rng(6).random((3, 4, augmentation.uniforms))
    table = torch.from_numpy(augmentation.parameters(uniform)).flatten(0, 1)
    crops = torch.randint(0, 256, (12, channels, 16, 16), dtype=torch.uint8)
    assert augmentation(crops, table).isfinite().all()
