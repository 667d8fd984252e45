"""Logs of many forms: their names, their unit, the state and the images of a run."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from dino_exp.errors import UserError
from dino_exp.report.doctor.training_log import read_log
from dino_exp.report.loading import load_run
from tests.report.doctor.logs import DATA, HEALTHY, finding, ours, set_state, titles
from tests.report.synthetic import write_json, write_lines


def test_names_are_matched_in_any_case(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = [{"Step": 10 * index, "Loss": 9.0 - 0.1 * index, "Out_Dim": 4096, "k": 20} for index in range(20)]
    write_lines(log, lines)
    read = read_log(log)
    assert (read.unit, read.last.at, read.last.get("loss"), read.out_dim) == ("step", 190, 9.0 - 1.9, 4096)


def test_the_state_is_the_same_as_in_the_report(tmp_path: Path) -> None:
    run = ours(tmp_path / "run")
    set_state(run, state="running", heartbeat=1_700_000_000)
    assert read_log(run).state == load_run(run).state == "lost"
    lost = finding(run, "The run is lost")
    assert lost.evidence == "It was at step 2,250; no sign of life since 2023-11-14 22:13:20 UTC."
    set_state(run, state="running", heartbeat=time.time())
    assert read_log(run).state == load_run(run).state == "running"


def test_the_number_of_images_follows_from_the_log(tmp_path: Path) -> None:
    run = ours(tmp_path / "run", each=lambda index: {"epoch": ((index + 1) * 2250 // 40 - 1) // 375})
    settings = json.loads((run / "config.yaml").read_text())
    del settings["data"]["train_size"]
    write_json(run / "config.yaml", settings)
    assert read_log(run).images == 12_000
    (run / "status.json").unlink()
    assert read_log(run).images == pytest.approx(12_000, rel=0.02)


def test_a_path_without_a_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.log").write_text("Epoch 1 loss 3.2\n")
    (tmp_path / "other.jsonl").write_text('{"epoch": 1, "accuracy": 3}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    sweep = tmp_path / "sweep"
    shutil.copytree(DATA / "healthy", sweep / "run")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("name: demo\n")
    (begun / "traceback.txt").write_text("Traceback\nValueError: too large\n")
    refused = {
        tmp_path / "nowhere": "no such file or folder",
        tmp_path / "text.log": "not a log of JSON lines",
        tmp_path / "other.jsonl": "no line has a loss .*; the lines have: accuracy, epoch",
        tmp_path / "empty.jsonl": "empty; nothing was logged yet",
        sweep: "a sweep; give one of its runs, e.g. .*sweep/run",
        begun: "nothing was logged yet. It failed: ValueError: too large",
        tmp_path: "no metrics.jsonl or log.txt in it",
    }
    for path, words in refused.items():
        with pytest.raises(UserError, match=words):
            read_log(path)


def test_an_unreadable_configuration_is_only_a_remark(tmp_path: Path) -> None:
    run = ours(tmp_path / "run")
    (run / "config.yaml").write_text("loss: {teacher_temp: hot}\nema: {momentum: 0.99}\n")
    assert titles(run) == ["The configuration is from another version", HEALTHY]
