"""Batches of crops in an order that depends on the seed alone.

A sample's crops depend on (seed, epoch, index): each picture draws from a counter-based generator at that
place, so neither worker count, nor process count, nor a resume changes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dino_exp.augment import Augment
from dino_exp.crops import MultiCrop
from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.errors import UserError


class Batch(NamedTuple):
    """One step's crops, before colour. B pictures, C channels; crop-major."""

    global_crops: torch.Tensor  # uint8 (2, B, C, S, S)
    local_crops: torch.Tensor  # uint8 (n, B, C, s, s)
    parameters: torch.Tensor  # float32 (2 + n, B, 11), for `Augment`
    corrupt: torch.Tensor  # int64, indices that could not be read and were replaced by the next readable one


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one picture in one epoch; index −1 is for the order of the epoch."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, index + 1, epoch, 0]))


class BatchOrder(Sampler[tuple[int, list[int]]]):
    """Yields (epoch, indices) of each global batch from `start_step` to `stop_step`, without incomplete ones.

    Args:
        length: pictures in the data set, at least `batch_size`.
        batch_size: global.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start_step: int, stop_step: int) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start_step, self.stop_step = start_step, stop_step

    def __len__(self) -> int:
        return self.stop_step - self.start_step

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        steps_per_epoch = self.length // self.batch_size
        known = -1
        for step in range(self.start_step, self.stop_step):
            epoch, place = divmod(step, steps_per_epoch)
            if epoch != known:
                order, known = generator(self.seed, epoch, -1).permutation(self.length), epoch
            yield epoch, order[place * self.batch_size : (place + 1) * self.batch_size].tolist()


class CropBatches(Dataset[Batch]):
    """Maps (epoch, indices) to a `Batch`."""

    def __init__(self, source: ImageSource, crops: MultiCrop, augment: Augment, seed: int) -> None:
        self.source, self.crops, self.augment, self.seed = source, crops, augment, seed

    def __getitem__(self, where: tuple[int, list[int]]) -> Batch:
        epoch, indices = where
        each = self.crops.uniforms + self.augment.uniforms
        uniform = np.empty((len(self.crops), len(indices), each))
        cut: list[list[torch.Tensor]] = []
        corrupt: list[int] = []
        for column, index in enumerate(indices):
            uniform[:, column] = generator(self.seed, epoch, index).random((len(self.crops), each))
            picture = self._read(index, corrupt)
            boxes = self.crops.boxes(uniform[:, column, : self.crops.uniforms], *picture.shape[1:])
            cut.append(self.crops.cut(picture, boxes))
        by_crop = list(zip(*cut, strict=True))
        empty = torch.empty(0, len(indices), *by_crop[0][0].shape, dtype=torch.uint8)
        return Batch(
            global_crops=torch.stack([torch.stack(crop) for crop in by_crop[:2]]),
            local_crops=torch.stack([torch.stack(crop) for crop in by_crop[2:]]) if by_crop[2:] else empty,
            parameters=torch.from_numpy(self.augment.parameters(uniform[..., self.crops.uniforms :])),
            corrupt=torch.tensor(sorted(corrupt), dtype=torch.int64),
        )

    def _read(self, index: int, corrupt: list[int]) -> torch.Tensor:
        """The picture, or the next readable one; unreadable ones are noted in `corrupt`."""
        for offset in range(len(self.source)):
            place = (index + offset) % len(self.source)
            try:
                return self.source.read(place)
            except CorruptImageError:
                corrupt.append(place)
        raise UserError("none of the pictures can be read; is data.root the right folder?")


def batches(dataset: CropBatches, order: BatchOrder, workers: int, pin_memory: bool) -> DataLoader[Batch]:
    """A loader over `order`; `workers` processes with one thread each, or this process when 0."""
    return DataLoader(
        dataset,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        # Without one of its own, a loader draws from the generator that stochastic depth draws from.
        generator=torch.Generator(),
    )
