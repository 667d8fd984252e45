"""The queue between a run and a tracker, and the ids under which trackers know runs."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from dino_exp.tracker import new_tracker_id
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


def test_tracker_ids_are_valid_and_differ() -> None:
    ids = {new_tracker_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(name) == 12 and name.isalnum() and name == name.lower() for name in ids)
