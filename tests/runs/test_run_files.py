"""Damaged and hostile files of runs: nothing raises, what is wrong is named, and what was there is kept."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dino_exp.config.stored import DamagedConfigError, parse, read_if_possible, read_plain
from dino_exp.errors import UserError
from dino_exp.eval import records
from dino_exp.runs import run_files
from dino_exp.runs.manifest import Entry, Manifest
from dino_exp.runs.run_directory import RunDirectory, read_metrics, to_json
from dino_exp.runs.run_files import STATUS

DAMAGED = {
    "empty": b"",
    "cut": b'{"state": "running", "st',
    "zeros": bytes(300),
    "list": b"[]",
    "null": b"null",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "33 levels": b'{"a":' * 33 + b"1" + b"}" * 33,
    "5,000 digits": b"9" * 5000,
    "UTF-16": '{"state": "running", "st'.encode("utf-16"),
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_empty_and_named(tmp_path: Path, content: bytes) -> None:
    directory = RunDirectory(tmp_path)
    readers: dict[str, Callable[[list[str]], object]] = {
        "status.json": directory.read_status,
        "summary.json": directory.read_summary,
        "config.yaml": lambda problems: read_if_possible(directory.config_file, problems),
    }
    for name, read in readers.items():
        (tmp_path / name).write_bytes(content)
        problems: list[str] = []
        assert read(problems) == {}
        assert [problem.partition(" ")[0] for problem in problems] == [name]
    directory.metrics_file.write_bytes(b'{"step": 1}\n' + content.replace(b"\n", b" ") + b'\n{"step": 2}\n')
    assert [line["step"] for line in read_metrics(directory.metrics_file)] == [1, 2]
    with pytest.raises(DamagedConfigError, match="typed again, writes it anew"):
        read_plain(directory)


WRONG = ["abc", -1, 1e308, 10**400, [], [{}], {"a": 1}, True, "\udcff\x1b[2J", float("nan")]


@pytest.mark.parametrize("field", sorted(STATUS.keys() - {"format"}))
def test_a_field_of_the_wrong_type_is_missing_and_named(tmp_path: Path, field: str) -> None:
    directory = RunDirectory(tmp_path)
    wrong = [value for value in WRONG if not STATUS[field].fits(value)]
    assert len(wrong) >= 7
    for value in wrong:
        directory.status_file.write_text(json.dumps({"own": 1, field: value}))
        problems: list[str] = []
        assert directory.read_status(problems) == {"own": 1}
        (problem,) = problems
        assert problem.startswith(f"status.json: {field} = ")
        assert len(problem) < 200


def test_other_files_than_regular_ones_of_a_bounded_size_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, problems = RunDirectory(tmp_path), list[str]()
    os.mkfifo(directory.status_file)
    directory.summary_file.mkdir()
    assert directory.read_status(problems) | directory.read_summary(problems) == {}
    kind = "a pipe, socket, device or folder, not a file"
    assert problems == [f"{name}.json cannot be read: {kind}." for name in ("status", "summary")]
    (tmp_path / "records").mkdir()
    with (tmp_path / "records" / records.FILE).open("w") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match="larger than 32 MiB"):
        records.read(tmp_path / "records")
    monkeypatch.setattr("dino_exp.runs.metrics_lines.MOST_BYTES_OF_A_LINE", 100)
    directory.metrics_file.write_text('{"step": 1}\n{"step": 2, "x": "' + "a" * 500 + '"}\n{"step": 3}\n')
    assert [line["step"] for line in read_metrics(directory.metrics_file)] == [1, 3]


@pytest.mark.parametrize(
    "text",
    [
        b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        b"- " * 100_000 + b"1",
        b"a: " + b"[" * 5000,
        b"".join(b" " * level + b"a:\n" for level in range(2000)),
        b"a: 1\na.b: 2\n",
        b"? [1]\n: 2\n",
        b"!!python/object/apply:os.system [true]",
    ],
)
def test_yaml_that_grows_or_runs_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_a_file_that_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    directory.mark(state="running")

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(run_files, "open_file", fails)
    with pytest.raises(
        run_files.UnreadableError, match=r"status\.json: the disk or network file system failed"
    ):
        directory.mark(state="pending")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


# ---- writing them anew -------------------------------------------------------------------------------------


def test_a_damaged_status_is_kept_beside_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = RunDirectory(tmp_path)
    for number in range(2):
        directory.status_file.write_text(f'{{"step": "{number}", "tracker_id": "abc"}}')
        RunDirectory(tmp_path).write_status(state="running")
    status = directory.read_status()
    assert (status["state"], status["tracker_id"]) == ("running", "abc")
    assert (tmp_path / "status.json.damaged").read_text() == '{"step": "0", "tracker_id": "abc"}'
    assert (tmp_path / "status.json.damaged-2").read_text() == '{"step": "1", "tracker_id": "abc"}'
    assert 'step = "0" is not a whole number. It is kept as status.json.damaged' in caplog.messages[0]


def test_a_lost_state_is_that_of_the_summary(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for state, expected in (("finished", "finished"), ("collapsed", "collapsed"), ("failed", None)):
        directory.write_summary({"state": state})
        assert directory.read_status().get("state") == expected


LINES = [to_json({"step": step, "loss": step / 2}) for step in range(9)]


@pytest.mark.parametrize(
    ("number", "line"),
    [(2, "\n"), (2, "\0" * 20 + "\n"), (2, '["step": 2}\n'), (2, '{"step": -2}\n'), (2, '{"step": 1e300}\n')],
)
def test_lost_lines_are_taken_from_the_checkpoint(tmp_path: Path, number: int, line: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.metrics_file.write_text("".join([*LINES[:number], line, *LINES[number + 1 : 7], '{"step": 7']))
    directory.rewind_metrics(6, map(json.loads, LINES[:7]))
    assert directory.metrics_file.read_text() == "".join(LINES[:7])


def test_lines_that_nothing_else_has_are_named_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = RunDirectory(tmp_path)
    damaged = "".join([*LINES[:2], "{\n", "{\n", *LINES[4:6], "{}\n", *LINES[6:8], "[\n"])
    directory.metrics_file.write_text(damaged)
    directory.rewind_metrics(8, map(json.loads, LINES[8:9]))
    assert directory.metrics_file.read_text() == "".join([*LINES[:2], *LINES[4:]])
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == damaged
    (said,) = caplog.messages
    assert "damaged: 4; the file is kept as metrics.jsonl.damaged" in said
    assert "restored from the checkpoint: 1 (steps 8)" in said
    assert said.count("lost") == 1
    assert "lines of steps 2 to 3 are lost" in said


def test_a_line_that_a_kill_has_cut_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = RunDirectory(tmp_path)
    directory.metrics_file.write_text("".join(LINES) + LINES[8][:9])
    directory.rewind_metrics(8, map(json.loads, LINES))
    assert directory.metrics_file.read_text() == "".join(LINES)
    assert caplog.messages == []


# ---- manifests ---------------------------------------------------------------------------------------------


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_has_the_runs_of_the_folder(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    RunDirectory(tmp_path / "b").mark(state="pending", slurm_job_id="12_3")
    RunDirectory(tmp_path / "a").mark(state="finished")
    (tmp_path / "jobs").mkdir()
    Manifest.path(tmp_path).write_bytes(content)
    manifest = Manifest.load(tmp_path)
    assert {name: entry.job for name, entry in manifest.runs.items()} == {"a": "local", "b": "12_3"}
    assert "manifest.json" in manifest.problems[0]
    manifest.save()
    assert (tmp_path / "manifest.json.damaged").read_bytes() == content
    assert "kept as manifest.json.damaged" in caplog.text
    assert list(Manifest.load(tmp_path).runs) == ["a", "b"]


def test_damaged_entries_of_a_manifest_do_not_take_the_others_away(tmp_path: Path) -> None:
    whole = {"overrides": ["a=1"], "config_hash": "1", "job": "7", "retries": 2, "color": "red"}
    wrong = {"overrides": [1], "config_hash": 5, "job": [], "jobs": "7", "retries": "x", "cancelled": "no"}
    content = {"launcher": "slurm", "settings": {}, "runs": {"a": whole, "b": wrong, "c": 7}}
    write(Manifest.path(tmp_path), content)
    manifest = Manifest.load(tmp_path)
    assert manifest.runs == {"a": Entry(["a=1"], "1", "7", retries=2), "b": Entry([], ""), "c": Entry([], "")}
    assert sum("b: " in problem for problem in manifest.problems) == 6


@pytest.mark.parametrize(
    "name",
    ["../victim", "/etc", "a/b", "a/", ".", "..", "", "a\nb", "a\x1b[2J", "a\x00", "\udcff", "a" * 256],
)
def test_names_of_runs_are_no_paths(tmp_path: Path, name: str) -> None:
    content = {"launcher": "local", "settings": {}, "runs": {name: {"overrides": [], "config_hash": ""}}}
    write(Manifest.path(tmp_path), content)
    with pytest.raises(UserError, match=r"manifest\.json: .* is not the name of a run") as caught:
        Manifest.load(tmp_path)
    assert str(caught.value).isprintable()
