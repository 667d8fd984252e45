"""A map whose next results are worked on in threads while the present one is used."""

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
    """`map(load, items)` with at most `at_once` items under way (one per thread); workers = 0 has none."""
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
