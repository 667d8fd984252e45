"""Batches of crops in an order that depends on the seed alone.

A sample's crops depend on (seed, epoch, index): each image draws from a counter-based generator at that
place, so neither worker count, nor process count, nor a resume changes them.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dino_exp.data.augment import Augment
from dino_exp.data.crops import MultiCrop
from dino_exp.data.pil_reference import Released
from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.errors import UserError
from dino_exp.parallel.interrupt import STOPPING
from dino_exp.seeding import generator


class Batch(NamedTuple):
    """One step's crops, before color. B images, C channels; crop-major."""

    global_crops: torch.Tensor  # uint8 (2, B, C, S, S)
    local_crops: torch.Tensor  # uint8 (n, B, C, s, s)
    parameters: torch.Tensor  # float32 (2 + n, B, 11), for `Augment`; (2 + n, B, 0) where all is done
    corrupt: torch.Tensor  # int64, indices that could not be read and were replaced by the next readable one


class BatchOrder(Sampler[tuple[int, list[int]]]):
    """Yields (epoch, indices) of each batch from `start_step` to `stop_step`, without incomplete ones.

    Args:
        length: images in the data set, at least `batch_size`.
        batch_size: global.
        rank: which of `processes` equal, contiguous parts of every batch is wanted.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start_step: int,
        stop_step: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start_step, self.stop_step = start_step, stop_step
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return self.stop_step - self.start_step

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        steps_per_epoch = self.length // self.batch_size
        part = self.batch_size // self.processes
        known = -1
        for step in range(self.start_step, self.stop_step):
            epoch, place = divmod(step, steps_per_epoch)
            if epoch != known:
                order, known = generator(self.seed, epoch, -1).permutation(self.length), epoch
            start = place * self.batch_size + self.rank * part
            yield epoch, order[start : start + part].tolist()


class CropBatches(Dataset[Batch]):
    """Maps (epoch, indices) to a `Batch`.

    Args:
        backend: `data.backend`. With `pil` the crops come finished but for normalization.
    """

    def __init__(
        self, source: ImageSource, crops: MultiCrop, augment: Augment, seed: int, backend: str
    ) -> None:
        self.source, self.crops, self.augment, self.seed = source, crops, augment, seed
        self.released = Released(crops, augment) if backend == "pil" else None

    def __getitem__(self, where: tuple[int, list[int]]) -> Batch:
        epoch, indices = where
        crops, each = self.crops, self.crops.uniforms + self.augment.uniforms
        uniform = np.stack(
            [generator(self.seed, epoch, index).random((len(crops), each)) for index in indices], axis=1
        )
        boxes_from, parameters = np.split(uniform, [crops.uniforms], axis=2)
        parameters = self.augment.parameters(parameters)
        corrupt: list[int] = []
        made = [
            self._readable(index, boxes_from[:, column], parameters[:, column], corrupt)
            for column, index in enumerate(indices)
        ]
        by_crop = list(zip(*made, strict=True))
        empty = torch.empty(0, len(indices), *by_crop[0][0].shape, dtype=torch.uint8)
        return Batch(
            global_crops=_stacked(by_crop[:2]),
            local_crops=_stacked(by_crop[2:]) if by_crop[2:] else empty,
            parameters=torch.from_numpy(parameters if self.released is None else parameters[..., :0]),
            corrupt=torch.tensor(sorted(corrupt), dtype=torch.int64),
        )

    def _readable(
        self, index: int, uniform: np.ndarray, parameters: np.ndarray, corrupt: list[int]
    ) -> list[torch.Tensor]:
        """Crops of the image, or of the next readable one; unreadable ones are noted in `corrupt`."""
        for offset in range(len(self.source)):
            place = (index + offset) % len(self.source)
            try:
                return self._crops(place, uniform, parameters)
            except CorruptImageError:
                corrupt.append(place)
        raise UserError("none of the images can be read; is data.root the right folder?")

    def _crops(self, index: int, uniform: np.ndarray, parameters: np.ndarray) -> list[torch.Tensor]:
        if self.released is not None:
            image = self.source.read(index)
            return self.released(image, self.crops.boxes(uniform, *image.shape[1:]), parameters)
        shrunk: list[tuple[np.ndarray, int]] = []

        def shrink(height: int, width: int) -> int:
            boxes = self.crops.boxes(uniform, height, width)
            factor = self.crops.factor(boxes)
            if factor > 1:
                shrunk.append((boxes, factor))
            return factor

        image = self.source.read(index, shrink)
        if shrunk:
            return self.crops.cut_shrunk(image, *shrunk[0])
        return self.crops.cut(image, self.crops.boxes(uniform, *image.shape[1:]))


def _stacked(by_crop: list[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    """One crop of every image after the other's: uint8 (crops, B, C, S, S)."""
    stacked = torch.stack([image for crop in by_crop for image in crop]).contiguous()
    return stacked.unflatten(0, (len(by_crop), -1))


def outlive_stop_signals(worker: int) -> None:
    """Keep a loader process at work until the run lets it go.

    Ctrl-C and SLURM signal every process of a run, which then saves at the end of its step, and cannot if its
    loader died meanwhile. The parent's own SIGTERM, by which it ends a loader that hangs, still counts where
    the system tells who sent it.
    """
    others = [number for number in STOPPING if number != signal.SIGTERM]
    for number in others:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_leave_at_the_parents_signal, daemon=True).start()


def _leave_at_the_parents_signal() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def batches(dataset: CropBatches, order: BatchOrder, workers: int, pin_memory: bool) -> DataLoader[Batch]:
    """A loader over `order`; `workers` processes with one thread each, or this process when 0."""
    return DataLoader(
        dataset,
        sampler=order,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=outlive_stop_signals,
    )
