"""The interface of evaluations: what each is given, and what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dino_exp.data.decoding import Decoding
from dino_exp.data.source import ImageSource, Splits
from dino_exp.errors import UserError
from dino_exp.eval.features import normalize, still_images


@dataclass(frozen=True)
class Subject:
    """The network to evaluate, and how images are prepared for it."""

    name: str
    """Path of the weights and the network in them, for people."""
    digest: str
    """Digest of weights and architecture: equal digests mean equal features."""
    backbone: nn.Module
    """The network, on `device` and without gradients; in eval mode, or put there by `evaluating`."""
    device: torch.device
    autocast_type: torch.dtype | None
    """Autocast type of the forward pass; None is float32 without autocast."""
    image_size: int
    """Side in pixels of the square that an image is cropped to."""
    crop_ratio: float
    """Side of that square as a share of the shorter side of the resized image."""
    decoding: Decoding
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int
    workers: int
    """Threads or processes that prepare images; 0 prepares them in this process."""
    seed: int

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.decoding.channels

    def normalized(self, images: Tensor) -> Tensor:
        """Return uint8 images (B, C, H, W) normalized, on the network's device."""
        return normalize(images.to(self.device), self.mean, self.std)

    def still_images(
        self, source: ImageSource, indices: Sequence[int], image_size: int = 0, batch_size: int = 0
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield `still_images` as the network is given them, by default of its own size and batch size."""
        return still_images(
            source,
            indices,
            image_size=image_size or self.image_size,
            crop_ratio=self.crop_ratio,
            batch_size=batch_size or self.batch_size,
            workers=self.workers,
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, self.autocast_type, enabled=self.autocast_type is not None)


class DivergedError(UserError):
    """A network whose features are not finite numbers."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: its features are not finite numbers; the network has diverged.")


@dataclass
class Findings:
    """The results of an evaluation."""

    figures: dict[str, float] = field(default_factory=dict)
    """Figures in percent by a short name such as top1_k20, the most important first."""
    details: dict[str, Any] = field(default_factory=dict)
    """Other values for evaluations.json, such as the chosen learning rate or numbers of images."""
    notes: list[str] = field(default_factory=list)
    """Sentences to show beside the figures."""
    files: list[Path] = field(default_factory=list)
    """Paths of the files that were written."""


class Evaluation(Protocol):
    """An evaluation, built from its typed configuration; `evaluate.py` and training use the same classes.

    All processes call both methods in the same order. `data` gives access to the images of the `data` group.
    Only rank 0 writes, and only its findings count.
    """

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError for what cannot work, before anything is computed or written."""

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Evaluate, and write files into `folder`, which belongs to this evaluation and may not exist yet."""


class LabeledData(Protocol):
    """Images with labels, and their features, extracted once for all evaluations."""

    @property
    def splits(self) -> Splits:
        """Training and held-out images. Raises UserError if there are none."""

    def features(self, split: str) -> BlockFeatures:
        """Return the features of `train` or `test`; all processes call it, and all get all features."""


@dataclass(frozen=True)
class BlockFeatures:
    """Features of N images; unreadable images have no row."""

    values: Tensor
    """float32 (N, rows, D), possibly memory-mapped, so read it in parts. For a transformer with a class token
    the rows are the class tokens of the last blocks in their order, and the mean of the last block's patch
    tokens; a single row is the backbone's own feature."""
    indices: Tensor
    """int64 (N,): index of each row's image in the source."""

    @property
    def blocks(self) -> int:
        """Number of blocks in the rows; 0 if there is only the backbone's own feature."""
        return max(self.values.shape[1] - 1, 0)

    def is_finite(self) -> bool:
        """Return whether no number of the backbone's feature is infinite or NaN."""
        return all(bool(part.isfinite().all()) for part in self.final.split(65536))

    @property
    def final(self) -> Tensor:
        """The backbone's feature (N, D): the class token of the last block."""
        return self.values[:, -2] if self.blocks else self.values[:, 0]


def has_labels(splits: Splits) -> bool:
    """Return whether there are held-out images, and labels on both sides."""
    return splits.test is not None and splits.train.labels is not None and splits.test.labels is not None


def probe_in_words(splits: Splits) -> str:
    """Return which images features are judged by; "" if these are the training and held-out images."""
    if splits.probe is None:
        return ""
    bank, queries = splits.probe.train, splits.probe.test or ()
    of = "training images" if bank is splits.train else "labeled images"
    return f"{len(queries):,} images of {len(bank.classes or ())} classes, by {len(bank):,} {of}"


def labeled(splits: Splits) -> tuple[ImageSource, ImageSource]:
    """Return training and held-out images; raises UserError without labels or with different classes."""
    train, test = splits.train, splits.test
    if test is None:
        raise UserError("There are no held-out images; set data.val_root, or data.probe.train and .val.")
    if train.labels is None or test.labels is None:
        side = "training" if train.labels is None else "held-out"
        raise UserError(
            f"The {side} images have no labels, or all the same; put them into two class folders or more, or "
            "give labeled ones: data.probe.train and data.probe.val."
        )
    if train.classes is not None and test.classes is not None and train.classes != test.classes:
        missing = sorted(set(train.classes) ^ set(test.classes))
        raise UserError(
            "Training and held-out images have different classes, so their labels do not match; only in "
            f"one of them: {', '.join(missing[:5]) or 'none, but the order differs'}."
        )
    return train, test
