"""The feed between a training and a mirror that is too slow."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dino_exp.tracker.feed import Feed


def test_a_full_queue_drops_new_records_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    may_consume = threading.Event()

    def consume(records: Iterator[dict[str, Any]]) -> None:
        may_consume.wait(30)
        seen.extend(record["step"] for record in records)

    feed = Feed("W&B", consume, capacity=3)
    for step in range(10):
        feed.put({"step": step})
    may_consume.set()
    assert feed.close({"step": 99}, timeout=30)
    assert seen == [0, 1, 2, 99]
    assert feed.dropped == 7
    assert len(caplog.records) == 1
    feed.put({"step": 100})
    assert feed.dropped == 7
