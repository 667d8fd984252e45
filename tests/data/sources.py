"""Images that tests make up, and what they take from splits that surely have it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from dino_exp.data.source import CorruptImageError, ImageSource, Shrink, Splits


class Album:
    """Images of any sizes, without labels or masks; some cannot be read."""

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
        raise AssertionError("there are no masks")

    def fingerprint(self) -> str:
        raise AssertionError("nobody keeps what is made of these")


def held_out(splits: Splits) -> ImageSource:
    """The images of `test`."""
    assert splits.test is not None
    return splits.test


def labels_of(source: ImageSource) -> np.ndarray:
    """Its labels."""
    assert source.labels is not None
    return source.labels


def classes_of(source: ImageSource) -> list[str]:
    """Names of its labels."""
    assert source.classes is not None
    return source.classes
