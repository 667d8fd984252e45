"""A sample's crops depend on (seed, epoch, index) alone."""

import errno
import os
import pickle
import select
import signal
import time
from collections.abc import Callable, Collection

import numpy as np
import pytest
import torch
from PIL import Image

from dino_exp.data import loader_processes
from dino_exp.data.decoding import Decoding
from dino_exp.data.loader import BatchOrder, CropBatch, CropBatches, batches
from dino_exp.data.loader_processes import Slots
from dino_exp.data.source import Shrink, decode_image
from dino_exp.errors import MachineError, UserError
from tests.data.sources import Album, as_file, multi_crop, noise, released_augment


def numbered(length: int, unreadable: Collection[int] = ()) -> Album:
    """Return images whose values are their index."""
    return Album([torch.full((3, 20, 24), index, dtype=torch.uint8) for index in range(length)], unreadable)


def dataset(source: Album, seed: int = 0, local_number: int = 2, backend: str = "fast") -> CropBatches:
    crops = multi_crop(global_size=16, local_size=8, local_number=local_number, local_scale=[0.1, 0.4])
    return CropBatches(source, crops, released_augment(), seed, backend)


def all_batches(workers: int, start: int = 0, backend: str = "fast") -> list[CropBatch]:
    order = BatchOrder(50, 8, 0, start, 15)
    return list(batches(dataset(numbered(50), backend=backend), order, workers, pin_memory=False))


def same(first: list[CropBatch], second: list[CropBatch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(("workers", "backend"), [(1, "fast"), (2, "fast"), (2, "pil")])
def test_workers_do_not_change_the_batches(workers: int, backend: str) -> None:
    assert same(all_batches(0, backend=backend), all_batches(workers, backend=backend))


def test_a_resume_gets_the_same_batches() -> None:
    assert same(all_batches(0)[7:], all_batches(0, start=7))


def test_batch_size_does_not_change_a_sample() -> None:
    large = dataset(numbered(50))[3, [4, 9, 30]]
    alone = dataset(numbered(50))[3, [9]]
    for ours, theirs in zip(large[:3], alone[:3], strict=True):
        assert torch.equal(ours[:, 1:2], theirs)


def test_seed_epoch_and_index_each_change_the_crops() -> None:
    reference = dataset(numbered(50), seed=0)[0, [1]].parameters
    for seed, epoch, index in ((1, 0, 1), (0, 1, 1), (0, 0, 2)):
        other = dataset(numbered(50), seed)[epoch, [index]].parameters
        assert not torch.equal(reference, other)


def test_each_epoch_is_another_permutation_and_drops_the_incomplete_batch() -> None:
    order = list(BatchOrder(50, 8, seed=0, start_step=0, stop_step=12))
    first = [index for epoch, indices in order if epoch == 0 for index in indices]
    second = [index for epoch, indices in order if epoch == 1 for index in indices]
    assert len(first) == len(set(first)) == len(second) == 48
    assert first != second
    assert first != sorted(first)


def test_batches_have_their_shapes_with_the_global_crops_first() -> None:
    batch = all_batches(0)[0]
    assert batch.global_crops.shape == (2, 8, 3, 16, 16)
    assert batch.local_crops.shape == (2, 8, 3, 8, 8)
    assert batch.parameters.shape == (4, 8, 11)
    _, indices = next(iter(BatchOrder(50, 8, 0, 0, 1)))
    assert batch.global_crops[0, :, 0, 0, 0].tolist() == indices


def test_without_local_crops_their_tensor_is_empty() -> None:
    assert dataset(numbered(50), local_number=0)[0, [1, 2]].local_crops.shape == (0, 2, 3, 16, 16)


def test_an_unreadable_image_is_replaced_by_the_next_and_reported() -> None:
    source = numbered(50, unreadable={7, 8, 49})
    batch = dataset(source)[0, [7, 3, 49]]
    assert batch.global_crops[0, :, 0, 0, 0].tolist() == [9, 3, 0]
    assert batch.corrupt.tolist() == [7, 8, 49]
    kept = dataset(numbered(50))[0, [7, 3, 49]]
    np.testing.assert_array_equal(batch.parameters, kept.parameters)


class Photograph(Album):
    """One large JPEG that notes its decoded sizes, after an unreadable image that calls `shrink` first."""

    def __init__(self, in_full: bool) -> None:
        super().__init__([torch.empty(0)] * 2, unreadable={0})
        photograph = noise(5, 6).resize((240, 180), Image.Resampling.BICUBIC)
        self.content, self.in_full = as_file(photograph, "JPEG", quality=90), in_full
        self.sizes: list[tuple[int, int]] = []

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        if shrink and index in self.unreadable:
            shrink(8000, 8000)
        super().read(index)
        shrink = None if self.in_full else shrink
        image = decode_image(self.content, "photograph", Decoding(3), shrink=shrink)
        self.sizes.append((image.shape[1], image.shape[2]))
        return image


def test_a_large_photograph_is_decoded_smaller_with_nearly_the_same_crops() -> None:
    small, full = Photograph(in_full=False), Photograph(in_full=True)
    ours, reference = ([dataset(source)[epoch, [0]] for epoch in range(20)] for source in (small, full))
    assert set(full.sizes) == {(180, 240)}
    assert set(small.sizes) == {(23, 30), (45, 60)}
    for part in ("global_crops", "local_crops"):
        a, b = (torch.stack([getattr(batch, part) for batch in each]).int() for each in (ours, reference))
        assert (a - b).abs().float().mean() < 1
    assert all(batch.corrupt.tolist() == [0] for batch in ours)


def test_no_readable_image_is_an_error() -> None:
    with pytest.raises(UserError, match=r"^All images are unreadable\. Is data\.root the right folder\?$"):
        list(batches(dataset(numbered(9, unreadable=range(9))), BatchOrder(9, 4, 0, 0, 2), 1, False))


class Acting(Album):
    """Images of which one does something to the process that reads it."""

    def __init__(self, at: int, act: Callable[[], object]) -> None:
        super().__init__(numbered(50).images)
        self.at, self.act = at, act

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        if index == self.at:
            self.act()
        return super().read(index)


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            MachineError,
            r"SIGKILL.*memory.*num_workers",
        ),
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), MachineError, "suspended"),
        (lambda: os._exit(3), MachineError, "exit code 3"),
        (lambda: 1 / 0, ZeroDivisionError, "division by zero"),
    ],
)
def test_a_loader_process_that_fails_ends_the_run_with_words(
    act: Callable[[], object], kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_processes, "FROZEN_SECONDS", 1)
    monkeypatch.setattr(loader_processes, "PREFETCH", 1)  # the batches before have come
    order = BatchOrder(50, 8, 0, 0, 12)
    step, index = 3, list(order)[3][1][5]
    loader = batches(dataset(Acting(index, act)), order, workers=2, pin_memory=False)
    made = [next(loader) for _ in range(step - 1)]
    with pytest.raises(kind, match=message):
        list(loader)
    assert same(made, all_batches(0)[: step - 1])


def test_a_look_while_waiting_can_end_it() -> None:
    waited = []

    def look(seconds: float) -> None:
        waited.append(seconds)
        raise KeyboardInterrupt

    hanging = dataset(Acting(5, lambda: time.sleep(600)))
    with pytest.raises(KeyboardInterrupt):
        list(batches(hanging, BatchOrder(50, 8, 0, 0, 12), 1, False, look))
    assert len(waited) == 1


def test_processes_that_cannot_be_started_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(MachineError, match=r"trainer\.num_workers = 2: .*Resource.*num_workers=0"):
        all_batches(2)


def test_batches_need_no_shared_memory_file_and_fit_into_a_pipe_at_once() -> None:
    batch = dataset(numbered(50))[0, [1, 2, 3]]
    slots = Slots(2, dataset(numbered(50)).bytes_of(3))
    parts = slots.put(1, batch)
    assert not any(isinstance(part, np.ndarray) for part in parts)
    assert len(pickle.dumps(parts)) < select.PIPE_BUF  # so that no half of it is waited for
    assert same([CropBatch(*slots.take(parts, False))], [batch])
    too_small = Slots(1, 10)
    assert same([CropBatch(*too_small.take(too_small.put(0, batch), False))], [batch])
