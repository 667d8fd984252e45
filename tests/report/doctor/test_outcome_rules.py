"""Runs that are too short to judge, or learn something else than the classes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.report.doctor.logs import finding, judged, ours, seen


def test_an_early_run_with_an_incomplete_line(tmp_path: Path) -> None:
    run = judged(tmp_path / "run", "warming-up", count=2)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "lo')
    code, text = seen(run)
    assert code == 0
    assert "Too early for a verdict" in text
    assert "Lines of the log that were skipped: 1." in text


def test_classes_that_are_not_learned(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"knn_top1": 20.0} if index == 39 else {})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 0, "knn_top1": 19.5}) + "\n")
    assert finding(run, "It learns something, but not the classes").severity == "doubtful"
