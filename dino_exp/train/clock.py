"""Where the time of the training loop goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Clock:
    """Seconds of training, of waiting for data, and since things were last written."""

    def __init__(self) -> None:
        self.start = self.lap_start = self.beat = time.perf_counter()
        self.waited = 0.0
        self.steps = 0

    def waiting_for(self, loader: Iterable[Item]) -> Iterator[Item]:
        """The loader's batches; the time until each comes counts as waiting."""
        asked = time.perf_counter()
        for batch in loader:
            self.waited += time.perf_counter() - asked
            self.steps += 1
            yield batch
            asked = time.perf_counter()

    def lap(self) -> tuple[int, float, float]:
        """Steps, seconds, and seconds of waiting since the last lap."""
        now = time.perf_counter()
        result = self.steps, now - self.lap_start, self.waited
        self.lap_start, self.waited, self.steps = now, 0.0, 0
        return result

    def skip(self) -> None:
        """Leave the time since the last lap, an evaluation's, out of the next one."""
        self.lap_start = time.perf_counter()

    def due(self, seconds: float) -> bool:
        """Whether so many seconds have gone by since this last said yes."""
        now = time.perf_counter()
        if now - self.beat < seconds:
            return False
        self.beat = now
        return True

    def total(self) -> float:
        """Seconds since the last call of this, or the start."""
        now = time.perf_counter()
        self.start, elapsed = now, now - self.start
        return elapsed
