"""What every evaluation is given, and what it gives back."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dino_exp.data.source import ImageSource, Splits
from dino_exp.errors import UserError
from dino_exp.eval.features import normalize


@dataclass(frozen=True)
class Subject:
    """The network that is evaluated, and how it is given images."""

    name: str
    """For people: where the weights are, and which network of them."""
    digest: str
    """Of the weights and the architecture: equal digests are equal features."""
    backbone: nn.Module
    """On `device`, in eval mode, without gradients."""
    device: torch.device
    autocast_type: torch.dtype | None
    """Of the forward pass; None is plain float32."""
    image_size: int
    """Side of the square that an image is cut to."""
    crop_ratio: float
    """That square's share of the side of the resized image."""
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    workers: int
    """Threads or processes that prepare images; 0 is none beside this one."""
    seed: int

    def normalized(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) as the network wants it, on its device."""
        return normalize(images.to(self.device), self.mean, self.std)

    def autocast(self) -> AbstractContextManager[Any]:
        """For every forward pass."""
        return torch.autocast(self.device.type, self.autocast_type, enabled=self.autocast_type is not None)


class DivergedError(UserError):
    """A network whose features are not finite numbers."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: its features are not finite numbers; the network has diverged.")


@dataclass
class Findings:
    """What an evaluation found."""

    figures: dict[str, float] = field(default_factory=dict)
    """In percent, all of them, by a short name such as top1_k20."""
    details: dict[str, Any] = field(default_factory=dict)
    """What evaluations.json holds besides: the chosen learning rate, numbers of images."""
    notes: list[str] = field(default_factory=list)
    """Sentences that belong beside the figures."""
    files: list[Path] = field(default_factory=list)
    """What was written."""


class Evaluation(Protocol):
    """A node of `evaluate.py`'s configuration, built.

    All processes call both methods in the same order. What they need of the images of `data` comes through
    `data`; only rank 0 writes, and only its findings count.
    """

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError for what cannot work, before anything is computed or written."""

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Do it; files go into `folder`, which is this evaluation's own and may not be there yet."""


class LabeledData(Protocol):
    """The images of `data=...`, and their features, extracted once for all evaluations."""

    @property
    def splits(self) -> Splits:
        """Training and held-out images, read at the first use. Raises UserError where there are none."""

    def features(self, split: str) -> BlockFeatures:
        """Of the images of `train` or `test`; to be called by all processes, which all get all of them."""


@dataclass(frozen=True)
class BlockFeatures:
    """Features of N images; those that cannot be read have no row."""

    values: Tensor
    """(N, rows, D) float32, perhaps of a memory-mapped file, so read it in parts. Of a transformer with a
    class token the rows are the class tokens of the last blocks, first to last, and the mean of the last
    block's patch tokens; a single row is the backbone's own feature."""
    indices: Tensor
    """(N,) int64: the source's index of each row."""

    @property
    def blocks(self) -> int:
        """How many blocks there are to choose from; 0 where there is only the backbone's own feature."""
        return max(self.values.shape[1] - 1, 0)

    def is_finite(self) -> bool:
        """Return whether no number of the backbone's feature is infinite or NaN."""
        return all(bool(part.isfinite().all()) for part in self.final.split(65536))

    @property
    def final(self) -> Tensor:
        """(N, D), the backbone's feature: the last block's class token."""
        return self.values[:, -2] if self.blocks else self.values[:, 0]


def has_labels(splits: Splits) -> bool:
    """Return whether there are held-out images, and labels on both sides."""
    return splits.test is not None and splits.train.labels is not None and splits.test.labels is not None


def labeled(splits: Splits) -> tuple[ImageSource, ImageSource]:
    """Training and held-out images with the same classes; a UserError where they are not that."""
    train, test = splits.train, splits.test
    if test is None:
        raise UserError("There are no held-out images to be right or wrong on; give them with data.val_root.")
    if train.labels is None or test.labels is None:
        side = "training" if train.labels is None else "held-out"
        raise UserError(
            f"The {side} images have no labels, or all the same; put them into class folders, two at least."
        )
    if train.classes is not None and test.classes is not None and train.classes != test.classes:
        missing = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(
            "Training and held-out images have different classes, so their labels do not match; only on "
            f"one side: {', '.join(missing[:5]) or 'none, but the order differs'}."
        )
    return train, test
