"""What linear classifiers are trained on: choices of features, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_exp.data.source import ImageSource
from dino_exp.eval.extraction import block_rows
from dino_exp.eval.features import evaluating
from dino_exp.eval.finetune.training_images import epoch_order, training_images
from dino_exp.eval.subject import BlockFeatures, Subject
from dino_exp.parallel import distributed
from dino_exp.seeding import generator

RELEASED_SCALE = (0.08, 1.0)
"""Area of a training crop: torchvision's RandomResizedCrop as eval_linear.py uses it."""

Batch = tuple[Tensor, Tensor]
"""Features (B, width) and labels (B,), on the device of the classifiers."""


class Choice(NamedTuple):
    """Which rows of `BlockFeatures` make the feature, one after the other."""

    blocks: int | None
    """Class tokens of this many last blocks; None is the backbone's own feature, where it is the only row."""
    patch_mean: bool | None
    """Whether the mean patch token of the last block follows them."""


def choices(blocks: Sequence[int], patch_mean: Sequence[bool], available: int) -> list[Choice]:
    """All combinations, small features first; only one where the backbone has no blocks to choose from.

    More blocks than are `available` are all of them.
    """
    if available == 0:
        return [Choice(None, None)]
    numbers = sorted({min(number, available) for number in blocks})
    return [Choice(number, mean) for number in numbers for mean in sorted(set(patch_mean))]


class Scaling(NamedTuple):
    """Makes every number of a feature of mean 0 and deviation 1 over some images."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, width)."""
        return (features - self.mean).div_(self.deviation)


@dataclass(frozen=True)
class LabeledRows:
    """Features with labels, read in batches."""

    values: Tensor
    """float32 (all images, width), perhaps of a memory-mapped file; only batches of it are copied."""
    labels: Tensor
    """int64 (all images,), on `device`."""
    numbers: np.ndarray
    """Row numbers of the N images in question."""
    dimension: int
    """Numbers in a token; the columns are whole tokens, the last of them the mean patch token if any is."""
    device: torch.device
    scaling: Scaling | None = None
    """Applied to each batch."""

    @classmethod
    def of(cls, features: BlockFeatures, most: int, source: ImageSource, device: torch.device) -> LabeledRows:
        """Class tokens of the `most` last blocks and the mean; moved to a GPU that has the room."""
        # Whole rows, so that flattening is a view and a memory-mapped file stays one.
        values = features.values[:, max(features.blocks - most, 0) :].flatten(1)
        if device.type == "cuda" and 4 * values.numel() < torch.cuda.mem_get_info(device)[0] / 2:
            values = values.to(device)
        labels = torch.as_tensor(source.labels)[features.indices].to(device)
        return cls(values, labels, np.arange(len(values)), features.values.shape[2], device)

    def part(self, numbers: np.ndarray) -> LabeledRows:
        """Other rows of the same features."""
        return replace(self, numbers=numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def columns(self, choice: Choice) -> slice:
        """Where the numbers of a choice are; they always lie side by side.

        For one block with the mean eval_linear.py takes numbers of class token and mean by turns instead of
        one after the other: the same classifier, its columns in another order.
        """
        if choice.blocks is None:
            return slice(0, self.dimension)
        blocks = self.values.shape[1] // self.dimension - 1
        first, last = blocks - choice.blocks, blocks + bool(choice.patch_mean)
        return slice(first * self.dimension, last * self.dimension)

    def arrays(self, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, D) of a choice and labels (N,), all of them in memory."""
        rows = torch.from_numpy(self.numbers)
        values = self.values[:, self.columns(choice)].index_select(0, rows.to(self.values.device))
        return values.cpu().numpy(), self.labels.cpu()[rows].numpy()

    def scaled_by(self, scaling: Scaling | None) -> LabeledRows:
        """The same rows, scaled; None as they are."""
        return replace(self, scaling=scaling)

    def own_scaling(self, size: int) -> Scaling:
        """Of these images, read in batches of `size`; a number that never changes is only shifted to 0."""
        total = torch.zeros(self.values.shape[1], dtype=torch.float64)
        for features, _ in self.batches(size):
            total += features.sum(dim=0).cpu()
        mean = (total / len(self)).float().to(self.device)
        total.zero_()
        for features, _ in self.batches(size):
            total += (features - mean).square_().sum(dim=0).cpu()
        deviation = (total / len(self)).sqrt().float().to(self.device)
        rounding = 1e-6 * mean.abs()
        return Scaling(mean, torch.where(deviation > rounding, deviation, torch.ones_like(deviation)))

    def batches(self, size: int) -> Iterator[Batch]:
        """All of them, in order."""
        yield from self._read(self.numbers, size)

    def epoch(self, epoch: int, seed: int, size: int) -> Iterator[Batch]:
        """All of them in the order of (seed, epoch); the last batch may be smaller."""
        yield from self._read(generator(seed, epoch, -1).permutation(self.numbers), size)

    def _read(self, numbers: np.ndarray, size: int) -> Iterator[Batch]:
        for start in range(0, len(numbers), size):
            rows = torch.from_numpy(numbers[start : start + size])
            features = self.values.index_select(0, rows.to(self.values.device)).to(self.device)
            labels = self.labels[rows.to(self.device)]
            yield features if self.scaling is None else self.scaling(features), labels


@dataclass(frozen=True)
class AugmentedRows:
    """Features of training images that are cut and flipped anew in each epoch, as eval_linear.py does.

    The processes share the forward passes, and all of them get all batches.
    """

    subject: Subject
    source: ImageSource
    indices: Tensor
    """Source indices of the images."""
    most: int
    """Class tokens of how many last blocks."""
    scaling: Scaling | None = None
    """Applied to each batch."""

    def __len__(self) -> int:
        return len(self.indices)

    def epoch(self, epoch: int, seed: int, size: int) -> Iterator[Batch]:
        """All of them in the order of (seed, epoch); batches with unreadable images are smaller."""
        subject = self.subject
        order = self.indices[epoch_order(len(self), seed, epoch)]
        mine = [distributed.share_of(batch) for batch in order.split(size)]
        images = training_images(
            self.source,
            torch.cat(mine).tolist(),
            seed=seed,
            epoch=epoch,
            image_size=subject.image_size,
            scale=RELEASED_SCALE,
            batch_size=-(-size // distributed.count()),
            workers=subject.workers,
        )
        labels = torch.as_tensor(self.source.labels)
        while True:
            batch = next(images, None)
            readable = distributed.from_all([] if batch is None else batch[1])
            if not any(readable):
                return
            rows = [] if batch is None else [self._rows(part) for part in batch[0].split(subject.batch_size)]
            width = max(distributed.from_all(rows[0].shape[1] if rows else 0))
            features = torch.cat(rows) if rows else torch.empty(0, width, device=subject.device)
            together = [index for part in readable for index in part]
            features = distributed.gathered(features)
            scaled = features if self.scaling is None else self.scaling(features)
            yield scaled, labels[together].to(subject.device)

    def _rows(self, images: Tensor) -> Tensor:
        """(B, width), the layout of `LabeledRows`."""
        subject = self.subject
        with evaluating(subject.backbone), subject.autocast():
            return block_rows(subject.backbone, subject.normalized(images), self.most).flatten(1).float()
