"""Data sources and augmentations for tests, and checked access to optional parts of a source."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from dino_exp.config.schema import SCHEMAS, AugmentConfig
from dino_exp.config.targets import build
from dino_exp.data.augment import Augment
from dino_exp.data.source import CorruptImageError, ImageSource, Shrink, Splits


def load(data: str, **fields: Path | str | int | None) -> Splits:
    """Return the splits of the option `data`, with these fields instead of the defaults."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    splits: Splits = build(OmegaConf.structured(SCHEMAS["data"][data](**values)))
    return splits


def released_augment(**changes: Any) -> Augment:
    """Return the released augmentation with some changes; by default it does not normalize."""
    channels = changes.get("channels", 3)
    of_images = {"channels": channels, "mean": [0.0] * channels, "std": [1.0] * channels}
    augment: Augment = build(OmegaConf.structured(AugmentConfig), **(of_images | changes))
    return augment


class Album:
    """Images of any sizes, without labels or masks; some are unreadable."""

    labels: np.ndarray | None = None
    classes: list[str] | None = None
    has_masks = False

    def __init__(
        self, images: Sequence[torch.Tensor] | torch.Tensor, unreadable: Collection[int] = ()
    ) -> None:
        self.images, self.unreadable = list(images), set(unreadable)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        if index in self.unreadable:
            raise CorruptImageError(self.name(index), "torn")
        return self.images[index].clone()

    def name(self, index: int) -> str:
        return f"album {index}"

    def mask(self, index: int) -> torch.Tensor:
        raise AssertionError("these images have no masks")

    def fingerprint(self) -> str:
        raise AssertionError("nothing made from these images is cached")


def held_out(splits: Splits) -> ImageSource:
    """Return the held-out images, which must exist."""
    assert splits.test is not None
    return splits.test


def labels_of(source: ImageSource) -> np.ndarray:
    """Return the labels, which must exist."""
    assert source.labels is not None
    return source.labels


def classes_of(source: ImageSource) -> list[str]:
    """Return the class names, which must exist."""
    assert source.classes is not None
    return source.classes
