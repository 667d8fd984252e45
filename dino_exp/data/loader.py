"""Batches of crops in an order that depends on the seed alone.

Each image draws its crops from a counter-based generator at (seed, epoch, index), so neither the number of
workers, nor that of processes, nor a resume changes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dino_exp.data import storage
from dino_exp.data.augment import RELEASED_COLUMNS, Augment
from dino_exp.data.crops import MultiCrop
from dino_exp.data.loader_processes import made_by_processes
from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.errors import UserError
from dino_exp.seeding import generator


class CropBatch(NamedTuple):
    """One step's crops of B images with C channels, crop-major, before the photometric augmentation."""

    global_crops: torch.Tensor  # uint8 (2, B, C, S, S)
    local_crops: torch.Tensor  # uint8 (n, B, C, s, s)
    parameters: torch.Tensor  # float32 (2 + n, B, columns) for `Augment`; (2 + n, B, 0) with backend = pil
    corrupt: torch.Tensor  # int64, indices of unreadable images, each replaced by the next readable one


@dataclass(eq=False)
class BatchOrder:
    """The (epoch, indices) of each batch from `start_step` to `stop_step`, without incomplete batches."""

    length: int
    """Images in the data set, at least `batch_size`."""
    batch_size: int
    """Of all processes together."""
    seed: int
    start_step: int
    stop_step: int
    rank: int = 0
    """Which of `processes` equal, contiguous parts of every batch to yield."""
    processes: int = 1

    def __len__(self) -> int:
        return self.stop_step - self.start_step

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        steps_per_epoch = self.length // self.batch_size
        part = self.batch_size // self.processes
        epoch_of_order = -1
        for step in range(self.start_step, self.stop_step):
            epoch, batch = divmod(step, steps_per_epoch)
            if epoch != epoch_of_order:
                order, epoch_of_order = generator(self.seed, epoch, -1).permutation(self.length), epoch
            start = batch * self.batch_size + self.rank * part
            yield epoch, order[start : start + part].tolist()


class CropBatches:
    """A map from (epoch, indices) to a `CropBatch`.

    Args:
        backend: `data.backend`. With `pil` the crops are finished except for normalization.
    """

    def __init__(
        self, source: ImageSource, crops: MultiCrop, augment: Augment, seed: int, backend: str
    ) -> None:
        self.source, self.crops, self.augment, self.seed = source, crops, augment, seed
        self.released = None
        if backend == "pil":
            from dino_exp.data.pil_reference import ReleasedPipeline  # torchvision takes a second

            self.released = ReleasedPipeline(crops, augment)

    def bytes_of(self, images: int) -> int:
        """Return the bytes of a batch."""
        per_crop = 4 * self.augment.uniforms
        return images * (self.augment.channels * self.crops.pixels + len(self.crops) * per_crop)

    def __getitem__(self, where: tuple[int, list[int]]) -> CropBatch:
        epoch, indices = where
        uniform = np.stack([self._uniform(epoch, index) for index in indices], axis=1)
        boxes_from, parameters = np.split(uniform, [self.crops.uniforms], axis=2)
        parameters = self.augment.parameters(parameters)
        corrupt: list[int] = []
        made = [
            self._readable(index, boxes_from[:, column], parameters[:, column], corrupt)
            for column, index in enumerate(indices)
        ]
        by_crop = list(zip(*made, strict=True))
        empty = torch.empty(0, len(indices), *by_crop[0][0].shape, dtype=torch.uint8)
        return CropBatch(
            global_crops=_stacked(by_crop[:2]),
            local_crops=_stacked(by_crop[2:]) if by_crop[2:] else empty,
            parameters=torch.from_numpy(parameters if self.released is None else parameters[..., :0]),
            corrupt=torch.tensor(sorted(corrupt), dtype=torch.int64),
        )

    def _uniform(self, epoch: int, index: int) -> np.ndarray:
        """Draw the uniform numbers of an image's crops, (crops, those of a box + those of the augmentation).

        Those of steps that the released code lacks are drawn last, so that they move none of the others.
        """
        random, crops = generator(self.seed, epoch, index), self.crops
        released = random.random((len(crops), crops.uniforms + RELEASED_COLUMNS))
        further = random.random((len(crops), self.augment.uniforms - RELEASED_COLUMNS))
        return np.concatenate([released, further], axis=1)

    def _readable(
        self, index: int, uniform: np.ndarray, parameters: np.ndarray, corrupt: list[int]
    ) -> list[torch.Tensor]:
        """Return the crops of the image, or of the next readable one; add unreadable ones to `corrupt`."""
        for offset in range(len(self.source)):
            candidate = (index + offset) % len(self.source)
            try:
                return self._crops(candidate, uniform, parameters)
            except CorruptImageError:
                corrupt.append(candidate)
        raise UserError("All images are unreadable. Is data.root the right folder?")

    def _crops(self, index: int, uniform: np.ndarray, parameters: np.ndarray) -> list[torch.Tensor]:
        if self.released is not None:
            image = self.source.read(index)
            return self.released(image, self.crops.boxes(uniform, *image.shape[1:]), parameters)
        boxes = functools.cache(functools.partial(self.crops.boxes, uniform))
        shrunk: list[tuple[np.ndarray, int]] = []

        def shrink(height: int, width: int) -> int:
            factor = self.crops.factor(boxes(height, width))
            if factor > 1:
                shrunk.append((boxes(height, width), factor))
            return factor

        image = self.source.read(index, shrink)
        if shrunk:
            return self.crops.cut_shrunk(image, *shrunk[0])
        return self.crops.cut(image, boxes(*image.shape[1:]))


def _stacked(by_crop: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """Stack the images' crops, crop-major: uint8 (crops, B, C, S, S)."""
    stacked = torch.stack([image for crop in by_crop for image in crop]).contiguous()
    return stacked.unflatten(0, (len(by_crop), -1))


def batches(
    dataset: CropBatches,
    order: BatchOrder,
    workers: int,
    pin_memory: bool,
    look: Callable[[float], None] = lambda waited: None,
) -> Iterator[CropBatch]:
    """Yield the batches of `order`, made by `workers` processes of one thread each, or in this one with 0.

    look: called twice a second with the seconds for which a batch has been waited for; may raise.
    Raises MachineError where no batch can be had: the disk, or a loader process, has failed.
    """
    if not workers:
        storage.while_waiting = look
        for where in order:
            batch = dataset[where]
            yield CropBatch(*(part.pin_memory() for part in batch)) if pin_memory else batch
        return
    size = dataset.bytes_of(order.batch_size // order.processes)
    for parts in made_by_processes(
        dataset.__getitem__, order, workers=workers, size=size, pin_memory=pin_memory, look=look
    ):
        yield CropBatch(*parts)
