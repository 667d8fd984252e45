"""A bounded queue and the thread that empties it, so that a slow tracker cannot slow the training down."""

import logging
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

logger = logging.getLogger("dino_exp.tracker")

Record = dict[str, Any]

LOCAL_FILES = "metrics.jsonl in the run directory has everything."


class Feed:
    """Queue of records for `consume(records)`, which runs in a daemon thread.

    Forked data loading workers do not inherit the thread, and never use the feed's locks.

    Args:
        name: the tracker's name in log lines.
        consume: takes an iterator of records that ends after `close`. An exception is logged and ends it.
        capacity: number of records that may wait; more are dropped and counted in `dropped`.
    """

    def __init__(self, name: str, consume: Callable[[Iterator[Record]], None], capacity: int = 2000) -> None:
        self.name = name
        self.dropped = 0
        self._capacity = capacity
        self._queue: SimpleQueue[Record | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(consume,), name=f"{name} feed", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a record and return at once; drop it if the queue is full or the consumer has ended."""
        if not self._thread.is_alive():
            return
        if self._queue.qsize() < self._capacity:
            self._queue.put(record)
            return
        self.dropped += 1
        if self.dropped == 1:
            slow = "%s: too slow, %d records are waiting; new ones are dropped. %s"
            logger.warning(slow, self.name, self._capacity, LOCAL_FILES)

    def close(self, last: Record | None, timeout: float) -> bool:
        """Queue `last`, end the feed, and wait up to `timeout` seconds; return whether all was consumed."""
        if last is not None:
            self._queue.put(last)
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self, consume: Callable[[Iterator[Record]], None]) -> None:
        try:
            consume(iter(self._queue.get, None))
        except Exception as error:
            logger.warning("%s: off, because of %s. %s", self.name, one_line(error), LOCAL_FILES)


def one_line(error: BaseException) -> str:
    """Return an exception's type and message as one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
