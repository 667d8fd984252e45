"""The time that the training loop spends on training and on waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Clock:
    """A stopwatch: training, waiting for data, and time since the last heartbeat, all in seconds."""

    def __init__(self) -> None:
        self.start = self.lap_start = self.beat = time.perf_counter()
        self.waited = 0.0
        self.steps = 0

    def waiting_for(self, loader: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches of a loader; the time until each arrives counts as waiting."""
        asked = time.perf_counter()
        for batch in loader:
            self.waited += time.perf_counter() - asked
            self.steps += 1
            yield batch
            asked = time.perf_counter()

    def lap(self) -> tuple[int, float, float]:
        """Return steps, seconds, and seconds of waiting since the last lap."""
        now = time.perf_counter()
        result = self.steps, now - self.lap_start, self.waited
        self.lap_start, self.waited, self.steps = now, 0.0, 0
        return result

    def skip(self) -> None:
        """Exclude the time since the last lap, which an evaluation took, from the next lap."""
        self.lap_start = time.perf_counter()

    def due(self, seconds: float) -> bool:
        """Return whether `seconds` have passed since the last call that returned True."""
        now = time.perf_counter()
        if now - self.beat < seconds:
            return False
        self.beat = now
        return True

    def total(self) -> float:
        """Return the seconds since the last call, or since the start."""
        now = time.perf_counter()
        self.start, elapsed = now, now - self.start
        return elapsed
