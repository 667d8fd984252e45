"""Training data of linear classifiers: choices of features, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dino_exp.data.source import ImageSource
from dino_exp.eval.extraction import block_rows
from dino_exp.eval.features import evaluating, gathered
from dino_exp.eval.finetune.training_images import epoch_order, training_images
from dino_exp.eval.subject import BlockFeatures, Subject
from dino_exp.parallel import distributed
from dino_exp.seeding import generator

RELEASED_SCALE = (0.08, 1.0)
"""Share of the area in a training crop, of torchvision's RandomResizedCrop as eval_linear.py uses it."""

FeatureBatch = tuple[Tensor, Tensor]
"""Features (B, width) and labels (B,), on the device of the classifiers."""


class Choice(NamedTuple):
    """The rows of `BlockFeatures` that are concatenated to the feature."""

    blocks: int | None
    """Class tokens of this many last blocks; None is the backbone's own feature, where it is the only row."""
    patch_mean: bool | None
    """True appends the mean patch token of the last block."""


def choices(blocks: Sequence[int], patch_mean: Sequence[bool], available: int) -> list[Choice]:
    """Return all combinations, small features first; a single one for a backbone without blocks.

    Numbers above `available` mean all blocks.
    """
    if available == 0:
        return [Choice(None, None)]
    numbers = sorted({min(number, available) for number in blocks})
    return [Choice(number, mean) for number in numbers for mean in sorted(set(patch_mean))]


class Scaling(NamedTuple):
    """A shift and scale that gives each column of some features mean 0 and standard deviation 1."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Standardize features (B, width)."""
        return (features - self.mean).div_(self.deviation)


@dataclass(frozen=True)
class LabeledRows:
    """Features with labels, read in batches."""

    values: Tensor
    """float32 (all images, width), perhaps of a memory-mapped file; only batches of it are copied."""
    labels: Tensor
    """int64 (all images,), on `device`."""
    rows: np.ndarray
    """The N rows that are used."""
    dimension: int
    """Width of a token. The columns are entire tokens; the last is the mean patch token, if there is one."""
    device: torch.device
    scaling: Scaling | None = None
    """Applied to each batch."""

    @classmethod
    def of(cls, features: BlockFeatures, most: int, source: ImageSource, device: torch.device) -> LabeledRows:
        """Take class tokens of the `most` last blocks and the mean; to the GPU if its memory allows."""
        # Entire tokens, so that flattening is a view and a memory-mapped file is not read.
        values = features.values[:, max(features.blocks - most, 0) :].flatten(1)
        if device.type == "cuda" and 4 * values.numel() < torch.cuda.mem_get_info(device)[0] / 2:
            values = values.to(device)
        labels = torch.as_tensor(source.labels)[features.indices].to(device)
        return cls(values, labels, np.arange(len(values)), features.values.shape[2], device)

    def __len__(self) -> int:
        return len(self.rows)

    def columns(self, choice: Choice) -> slice:
        """Return the columns of a choice, which are always adjacent.

        For one block with the mean, eval_linear.py interleaves class token and mean instead of concatenating
        them: the same classifier with its columns in another order.
        """
        if choice.blocks is None:
            return slice(0, self.dimension)
        blocks = self.values.shape[1] // self.dimension - 1
        first, last = blocks - choice.blocks, blocks + bool(choice.patch_mean)
        return slice(first * self.dimension, last * self.dimension)

    def arrays(self, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """Return features (N, D) of a choice and labels (N,), in memory."""
        rows = torch.from_numpy(self.rows)
        values = self.values[:, self.columns(choice)].index_select(0, rows.to(self.values.device))
        return values.cpu().numpy(), self.labels.cpu()[rows].numpy()

    def own_scaling(self, size: int) -> Scaling:
        """Return the scaling of these rows, read in batches of `size`; constant columns are only shifted."""
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

    def batches(self, size: int) -> Iterator[FeatureBatch]:
        """Yield all rows in order, in batches of `size`."""
        yield from self._read(self.rows, size)

    def epoch(self, epoch: int, seed: int, size: int) -> Iterator[FeatureBatch]:
        """Yield all rows in the order of (seed, epoch); the last batch may be smaller."""
        yield from self._read(generator(seed, epoch, -1).permutation(self.rows), size)

    def _read(self, rows: np.ndarray, size: int) -> Iterator[FeatureBatch]:
        for start in range(0, len(rows), size):
            chosen = torch.from_numpy(rows[start : start + size])
            features = self.values.index_select(0, chosen.to(self.values.device)).to(self.device)
            labels = self.labels[chosen.to(self.device)]
            yield features if self.scaling is None else self.scaling(features), labels


@dataclass(frozen=True)
class AugmentedRows:
    """Features of training images that are cropped and flipped anew in each epoch, as in eval_linear.py.

    The processes share the forward passes, and each gets all batches.
    """

    subject: Subject
    source: ImageSource
    indices: Tensor
    """Source indices of the images."""
    most: int
    """Number of last blocks whose class tokens are taken."""
    scaling: Scaling | None = None
    """Applied to each batch."""

    def __len__(self) -> int:
        return len(self.indices)

    def epoch(self, epoch: int, seed: int, size: int) -> Iterator[FeatureBatch]:
        """Yield all images in the order of (seed, epoch); batches with unreadable images are smaller."""
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
            features = gathered(rows, subject.device)
            together = [index for part in readable for index in part]
            scaled = features if self.scaling is None else self.scaling(features)
            yield scaled, labels[together].to(subject.device)

    def _rows(self, images: Tensor) -> Tensor:
        """Return features (B, width) with the columns of `LabeledRows`."""
        subject = self.subject
        with evaluating(subject.backbone), subject.autocast():
            return block_rows(subject.backbone, subject.normalized(images), self.most).flatten(1).float()
