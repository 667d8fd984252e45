"""Looking at images one by one, in parallel: what is known of each, and the statistics of their values."""

from __future__ import annotations

import multiprocessing
import re
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from dino_exp.data.content import ImagesWithContent
from dino_exp.data.digests import UNREADABLE, WHOLE, digest
from dino_exp.data.loader_processes import FORK
from dino_exp.data.source import CorruptImageError
from dino_exp.data.stored_values import UndecodableError, stored_values
from dino_exp.errors import MachineError, in_words
from dino_exp.inspection.duplicates import thumbnail
from dino_exp.inspection.value_statistics import ValueStatistics
from dino_exp.machine import cores


class Task(NamedTuple):
    """Images that a process looks at in one go."""

    start: int
    """Index of the first one."""
    decoded: Sequence[bool]
    """Whether each of them is decoded; of the others only the digest is taken."""


class Decoded(NamedTuple):
    """What is known of an image that was decoded."""

    position: int
    format: str
    bits: int
    kind: str
    """NumPy's name of the type of its values."""
    shape: tuple[int, int, int]
    """Height, width, channels."""


class Part:
    """What was found in some images."""

    def __init__(self) -> None:
        self.digests: list[int] = []  # of all images in their order
        self.unreadable: list[tuple[int, str]] = []
        self.images: list[Decoded] = []
        self.thumbnails: list[np.ndarray] = []  # of `images`
        self.statistics: dict[tuple[int, str], ValueStatistics] = {}  # by channels and type

    def add(self, other: Part) -> None:
        """Add what was found in other images."""
        self.digests += other.digests
        self.unreadable += other.unreadable
        self.images += other.images
        self.thumbnails += other.thumbnails
        for key, statistics in other.statistics.items():
            if key in self.statistics:
                self.statistics[key].merge(statistics)
            else:
                self.statistics[key] = statistics


Look = Callable[[Task], Part]


class Looking:
    """A function that looks at the images of a task.

    Args:
        source: the images.
        decoded: how many will be decoded in all.
    """

    def __init__(self, source: ImagesWithContent, decoded: int) -> None:
        self.source, self.decoded = source, decoded

    def __call__(self, task: Task) -> Part:
        """Look at each image."""
        part = Part()
        for index, decode in enumerate(task.decoded, task.start):
            known = UNREADABLE
            try:
                if decode:
                    content = self.source.encoded(index)
                    known = _digest(content)
                    self._decode(part, index, content)
                else:
                    known = self.source.digest(index, WHOLE)
            except CorruptImageError as error:
                part.unreadable.append((index, error.reason))
            except UndecodableError as error:
                part.unreadable.append((index, str(error)))
            except OSError as error:
                part.unreadable.append((index, in_words(error)))
            part.digests.append(known)
        return part

    def _decode(self, part: Part, index: int, content: bytes) -> None:
        stored = stored_values(content)
        values = stored.values
        if values.ndim != 3 or not values.size or values.dtype.kind not in "uif":
            raise UndecodableError(f"values of the type {values.dtype} and shape {values.shape}")
        height, width, channels = values.shape
        kind = values.dtype.newbyteorder("=").name
        key = channels, kind
        if key not in part.statistics:
            part.statistics[key] = ValueStatistics(channels, kind, self.decoded)
        part.statistics[key].add(values, index)
        part.thumbnails.append(thumbnail(values))
        part.images.append(Decoded(index, stored.format, stored.bits, kind, (height, width, channels)))


def _digest(content: bytes) -> int:
    return digest(len(content), lambda at, count: content[at : at + count], WHOLE)


def reason_of(text: str) -> str:
    """Return a reason without its numbers, to count the images that have the same."""
    return re.sub(r"\d[\d,.]*", "…", text)


@contextmanager
def parts_of(look: Look, tasks: Sequence[Task]) -> Iterator[Iterator[Part]]:
    """Give what `look` finds in each task, computed by one process per core; leaving ends them at once.

    Raises MachineError while it is read if a process was killed.
    """
    workers = min(cores(), len(tasks))
    if len(tasks) == 1:
        yield map(look, tasks)
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context(FORK)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(look,))
    try:
        yield _ahead(pool, tasks, workers)
    finally:
        started = set(multiprocessing.active_children()) - before
        pool.shutdown(wait=False, cancel_futures=True)
        for process in started:  # which own nothing, and may hang in a read
            process.kill()


def _ahead(pool: ProcessPoolExecutor, tasks: Sequence[Task], workers: int) -> Iterator[Part]:
    under_way: deque[Future[Part]] = deque()
    try:
        for task in tasks:
            under_way.append(pool.submit(_look, task))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise MachineError(
            "A process that decoded images was killed, perhaps because memory ran out. With fewer cores "
            "(taskset -c 0) fewer images are in memory at once."
        ) from error


_task_of_process: Look | None = None


def _begin(look: Look) -> None:
    global _task_of_process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    torch.set_num_threads(1)
    _task_of_process = look


def _look(task: Task) -> Part:
    assert _task_of_process is not None
    return _task_of_process(task)
