"""A map that computes the next results in threads while the present one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    load: Callable[[Item], Result], items: Iterable[Item], workers: int, at_once: int | None = None
) -> Iterator[Result]:
    """Yield `load` of each item in order, computed by `workers` threads, or by the caller's with workers = 0.

    At most `at_once` results, by default one per thread, are computed before they are asked for.
    """
    if workers == 0:
        yield from map(load, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(pool.submit(load, item))
                if len(under_way) > (at_once or workers):
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
