"""Batches of crops in an order that depends on the seed alone.

Each image draws its crops from a counter-based generator at (seed, epoch, index), so neither the number of
workers, nor that of processes, nor a resume changes them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dino_exp.data import storage
from dino_exp.data.augment import RELEASED_COLUMNS, Augment
from dino_exp.data.crops import MultiCrop
from dino_exp.data.loader_processes import Task, Tasks, made_by_processes
from dino_exp.data.shared_batches import Layout, SharedBatches
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
        return map(self.of_step, self.steps)

    @property
    def steps(self) -> range:
        """The steps that the batches are of."""
        return range(self.start_step, self.stop_step)

    @property
    def part(self) -> int:
        """Images of a batch."""
        return self.batch_size // self.processes

    def of_step(self, step: int) -> tuple[int, list[int]]:
        """Return the epoch and the indices of one batch."""
        epoch, batch = divmod(step, self.length // self.batch_size)
        start = batch * self.batch_size + self.rank * self.part
        return epoch, _order(self.seed, epoch, self.length)[start : start + self.part].tolist()


@functools.lru_cache(maxsize=2)  # a batch of the next epoch may be made ahead
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    return generator(seed, epoch, -1).permutation(length)


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

    def layout(self, images: int) -> Layout:
        """Return type and shape of each part of a batch but the unreadable images."""
        channels, crops, number = self.augment.channels, self.crops, self.crops.local_number
        local_size = crops.local_size if number else crops.global_size
        return [
            (np.uint8, (2, images, channels, crops.global_size, crops.global_size)),
            (np.uint8, (number, images, channels, local_size, local_size)),
            (np.float32, (len(crops), images, 0 if self.released else self.augment.uniforms)),
        ]

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
    shared: SharedBatches | None = None,
) -> Iterator[CropBatch]:
    """Yield the batches of `order`, made by `workers` processes of one thread each, or in this one with 0.

    look: called twice a second with the seconds for which a batch has been waited for; may raise.
    shared: where to have batches from that other runs make, and give them ours.
    Raises MachineError where no batch can be had: the disk, or a loader process, has failed.
    """
    if shared is not None:
        yield from _shared(dataset, order, workers, pin_memory, look, shared)
        return
    size = dataset.bytes_of(order.part)
    for parts in _made(dataset.__getitem__, order, workers, size, pin_memory, look):
        yield CropBatch(*parts)


def _shared(
    dataset: CropBatches,
    order: BatchOrder,
    workers: int,
    pin_memory: bool,
    look: Callable[[float], None],
    shared: SharedBatches,
) -> Iterator[CropBatch]:
    def make(step: int) -> list[np.ndarray]:
        return [part.numpy() for part in dataset[order.of_step(step)]]

    def batch_and_source(step: int) -> list[torch.Tensor]:
        arrays, source = shared.get(step, make)
        return [*map(torch.from_numpy, arrays), torch.tensor([source])]

    if not workers:
        shared.while_waiting = look
    size = dataset.bytes_of(order.part)
    made = _made(batch_and_source, order.steps, workers, size, pin_memory, look)
    for step, (*parts, source) in zip(order.steps, made, strict=True):
        shared.delivered(step, int(source))
        yield CropBatch(*parts)


def _made(
    make: Callable[[Task], Sequence[torch.Tensor]],
    tasks: Tasks[Task],
    workers: int,
    size: int,
    pin_memory: bool,
    look: Callable[[float], None],
) -> Iterator[Sequence[torch.Tensor]]:
    if workers:
        yield from made_by_processes(
            make, tasks, workers=workers, size=size, pin_memory=pin_memory, look=look
        )
        return
    storage.while_waiting = look
    for task in tasks:
        made = make(task)
        yield [part.pin_memory() for part in made] if pin_memory else made
