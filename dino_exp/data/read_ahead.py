"""A map that computes the next results in threads while the present one is used."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from dino_exp.errors import MachineError

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

SLICE = 0.5
"""Seconds between two looks at what keeps a result away."""
SAY_SECONDS = 60
GIVE_UP_SECONDS = 1800
"""The longest wait for one batch. Network disks that hang come back within minutes, or not at all."""


def patience(waited: float) -> None:
    """Say after a minute that no images come, and raise MachineError after half an hour."""
    if waited == SAY_SECONDS:
        log.warning("No images for %d s: the disk of data.root is slow or does not answer.", SAY_SECONDS)
    if waited >= GIVE_UP_SECONDS:
        raise MachineError(
            f"No images for {GIVE_UP_SECONDS // 60} minutes: the disk of data.root does not answer. When it "
            "does, the same command resumes."
        )


def ahead(
    load: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    at_once: int | None = None,
    look: Callable[[float], None] = patience,
) -> Iterator[Result]:
    """Yield `load` of each item in order, computed by `workers` threads, or by the caller's with workers = 0.

    At most `at_once` results, by default one per thread, are computed before they are asked for.
    look: called twice a second with the seconds for which a result has been waited for; may raise.
    """
    if workers == 0:
        yield from map(load, items)
        return
    pool = ThreadPoolExecutor(workers)
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(load, item))
            if len(under_way) > (at_once or workers):
                yield _awaited(under_way.popleft(), look)
        while under_way:
            yield _awaited(under_way.popleft(), look)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # a thread may hang in a read


def _awaited(future: Future[Result], look: Callable[[float], None]) -> Result:
    """Return the result. Slices are counted, so that time in which this program was suspended does not."""
    waited = 0.0
    while not future.done() and not wait([future], SLICE).done:
        waited += SLICE
        look(waited)
    return future.result()
