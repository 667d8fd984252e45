"""A bounded queue and the thread that empties it, so that a slow mirror cannot hold up the training."""

import logging
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

logger = logging.getLogger("dino_exp.tracker")

Record = dict[str, Any]

LOCAL_FILES = "metrics.jsonl in the run directory has everything."


class Feed:
    """Hands records to `consume(records)`, which runs on a daemon thread of its own.

    Forked data loading workers inherit neither the thread nor a lock that matters to them: only the process
    that made the feed uses it.

    Args:
        name: whom the feed is for, as in its log lines.
        consume: takes an iterator of records that ends after `close`. What it raises is logged, and the end.
        capacity: records that may wait; beyond it the newest are dropped and counted in `dropped`.
    """

    def __init__(self, name: str, consume: Callable[[Iterator[Record]], None], capacity: int = 2000) -> None:
        self.name = name
        self.dropped = 0
        self._capacity = capacity
        self._queue: SimpleQueue[Record | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(consume,), name=f"{name} feed", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        """Queue a record and return at once; a full queue drops it, and an ended consumer too, silently."""
        if not self._thread.is_alive():
            return
        if self._queue.qsize() < self._capacity:
            self._queue.put(record)
            return
        self.dropped += 1
        if self.dropped == 1:
            logger.warning(
                "%s: too slow, %d records are waiting; the newest are left out there. %s",
                self.name,
                self._capacity,
                LOCAL_FILES,
            )

    def close(self, last: Record | None, timeout: float) -> bool:
        """Queue `last` and the end, and wait up to `timeout` seconds; whether the consumer is through."""
        if last is not None:
            self._queue.put(last)
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self, consume: Callable[[Iterator[Record]], None]) -> None:
        try:
            consume(iter(self._queue.get, None))
        except Exception as error:
            logger.warning(
                "%s: off, because of %s. %s",
                self.name,
                describe(error),
                LOCAL_FILES,
            )


def describe(error: BaseException) -> str:
    """An exception's type and message on one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
