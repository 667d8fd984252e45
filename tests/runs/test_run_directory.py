"""Files of a run: dropped log lines, the lock, others' files, and links."""

import errno
import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_exp.atomic import write_atomically, write_text_atomically
from dino_exp.errors import UserError, in_words
from dino_exp.runs.run_directory import RunDirectory, end_of_attempt
from tests.programs import Program


class FullDisk(io.BytesIO):
    """A file with room for 300 bytes."""

    def write(self, content: Any) -> int:
        if self.tell() + memoryview(content).nbytes > 300:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content)


def test_a_full_disk_is_named_also_where_torch_hides_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="enforce fail"):
        torch.save({"weights": torch.ones(9999)}, FullDisk())
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomically(
            tmp_path / "last.pt", lambda _: torch.save({"weights": torch.ones(9999)}, FullDisk())
        )
    assert in_words(caught.value) == f"{tmp_path / 'last.pt'}: the disk is full"


def test_new_folders_are_flushed_to_disk_from_the_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr(
        os, "fsync", lambda number: flushed.append(Path(f"/proc/self/fd/{number}").readlink())
    )
    write_text_atomically(tmp_path / "run" / "checkpoints" / "best.txt", "")
    assert {tmp_path, tmp_path / "run", tmp_path / "run" / "checkpoints"} <= set(flushed)
    flushed.clear()
    (tmp_path / "outputs" / "demo" / "run").mkdir(parents=True)  # as Hydra does
    RunDirectory(tmp_path / "outputs" / "demo" / "run").hold()
    assert {tmp_path, tmp_path / "outputs", tmp_path / "outputs" / "demo"} <= set(flushed)


def test_attempts_last_as_long_as_they_did_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RunDirectory(tmp_path)
    began = directory.opened
    directory.write_status(state="running", attempts=[{"began": began}])
    monkeypatch.setattr(time, "time", lambda: began - 86400)
    directory.write_status(step=1)
    ended = end_of_attempt(directory.read_status())
    assert ended is not None
    assert 0 <= ended - began < 3600
    assert end_of_attempt({"heartbeat": 9.0, "attempts": [{"began": 5.0}]}) == 9.0  # of an earlier version


def test_rewind_drops_later_steps_and_a_line_cut_short(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for step in (0, 10, 20, 30):
        directory.append_metrics({"step": step, "loss": float("nan") if step == 10 else 1.0})
    with directory.metrics_file.open("a") as file:
        file.write('{"step": 40, "lo')
    directory.rewind_metrics(20)
    lines = [json.loads(line) for line in directory.metrics_file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 10, 20]
    assert lines[1]["loss"] is None


def test_summary_json_is_strict(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_summary({"attention": {"auc": float("nan"), "mass": 0.5}, "values": [float("inf"), 1]})
    assert directory.read_summary() == {"attention": {"auc": None, "mass": 0.5}, "values": [None, 1]}


def test_status_keeps_unchanged_fields(tmp_path: Path) -> None:
    RunDirectory(tmp_path).write_status(state="running", step=3, attempt=1)
    again = RunDirectory(tmp_path)
    again.write_status(step=4)
    status = again.read_status()
    assert (status["state"], status["step"], status["attempt"]) == ("running", 4, 1)
    assert {"heartbeat", "host", "pid", "slurm_job_id"} <= status.keys()


def test_a_run_cannot_be_held_until_the_process_that_holds_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text(
        "import sys, time; from pathlib import Path; from dino_exp.runs.run_directory import RunDirectory\n"
        "directory = RunDirectory(Path(sys.argv[1])); directory.hold()\n"
        "directory.write_status(state='running'); print('held', flush=True); time.sleep(300)"
    )
    other = Program(str(tmp_path / "hold.py"), str(tmp_path), folder=tmp_path)
    other.until_it_says("held")
    with pytest.raises(UserError, match=f"process {other.pid}"):
        RunDirectory(tmp_path).hold()
    other.kill()
    RunDirectory(tmp_path).hold()


def test_each_process_that_trains_anew_holds_a_directory_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "run"
    held = [RunDirectory.held_beside(path) for _ in range(3)]  # before any of them has written a file
    assert [each.path.name for each in held] == ["run", "run-2", "run-3"]
    held[1].config_file.write_text("")
    for each in held:
        each.release()
    again = [RunDirectory.held_beside(path) for _ in range(2)]
    assert [each.path.name for each in again] == ["run", "run-3"]


@pytest.mark.parametrize("name", ["checkpoints/.dvc.lock", "plots/mine.png", "metrics.jsonl", "summary.json"])
def test_a_folder_that_is_no_run_but_has_files_of_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "plots").mkdir()
    RunDirectory(tmp_path).refuse_others_files()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"no run .* it has {name.partition('/')[0]}, which a run would"):
        RunDirectory(tmp_path).refuse_others_files()
    RunDirectory(tmp_path).config_file.touch()
    RunDirectory(tmp_path).refuse_others_files()


@pytest.mark.parametrize("name", ["checkpoints", "plots", "wandb", "tensorboard", ".lock"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=f"run/{name}: a link to .*elsewhere"):
        RunDirectory(run).hold()
    assert [path.name for path in run.iterdir()] == [name]
    (tmp_path / "linked").symlink_to(run)  # the directory itself may be one
    (run / name).unlink()
    RunDirectory(tmp_path / "linked").hold()


def test_beside_returns_the_next_free_name(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert RunDirectory.beside(path).path == path
    for expected in ("run-2", "run-3"):
        RunDirectory.beside(path).config_file.parent.mkdir(parents=True)
        RunDirectory.beside(path).config_file.write_text("")
        assert RunDirectory.beside(path).path.name == expected
