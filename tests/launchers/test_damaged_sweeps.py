"""Sweeps with damaged files: every command says what is wrong, and the sweep typed again goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dino_exp.report import report_command
from dino_exp.report.loading import load, load_sweep
from dino_exp.runs.manifest import Entry, Manifest
from launchers.__main__ import main as launchers
from launchers.local import QUEUE_LOG
from launchers.submission import Wanted
from tests.launchers.doubles import (
    LOCALLY,
    ON_SLURM,
    SWEEP,
    Cluster,
    Played,
    config,
    dino,
    directory,
    mark,
    resume,
    submit,
    the_sweep,
    wait_until,
)
from tests.runs.test_run_files import DAMAGED

COMMANDS = ("status", "collect", "logs", "wait")
HOSTILE: dict[str, dict[str, Any]] = {
    "status.json": {
        "state": [1],
        "step": "abc",
        "total_steps": {},
        "heartbeat": 1e308,
        "attempt": "q",
        "attempts": 5,
        "slurm_job_id": 7,
        "tracker_id": [],
    },
    "summary.json": {
        "state": 5,
        "verdict": [1],
        "evidence": {},
        "steps": 10**400,
        "final": [1],
        "knn_top1": "x",
        "images_per_second": {"a": 1},
        "environment": 3,
    },
    "metrics.jsonl": {
        "step": 17,
        "loss": "x",
        "verdict": 5,
        "knn_top1": [1],
        "teacher/entropy_share": {},
    },
}


def damages(name: str) -> Iterator[bytes]:
    yield from DAMAGED.values()
    yield json.dumps(HOSTILE.get(name, {})).encode()


@pytest.mark.parametrize(
    "name", ["status.json", "summary.json", "config.yaml", "metrics.jsonl", "evaluations.json"]
)
def test_commands_do_not_end_at_a_damaged_file(cluster: Cluster, name: str) -> None:
    submit([0, 1])
    mark(0, state="finished", step=16, total_steps=16)
    cluster.move({"100_0": "COMPLETED", "100_1": "FAILED"})
    file = directory(0).path / name
    for content in damages(name):
        file.write_bytes(content)
        for command in COMMANDS:
            assert launchers([command, str(SWEEP)]) in (0, 1)
        assert len(load_sweep(SWEEP).runs) == 2
        load(file.parent)
        assert report_command.main(["doctor", str(file.parent)]) in (0, 1, 2)
        file.unlink()


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_sweep_with_a_damaged_manifest_goes_on(
    cluster: Cluster, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    submit([0, 1])
    mark(0, state="finished")
    cluster.move({"100_0": "COMPLETED", "100_1": "FAILED"})
    Manifest.path(SWEEP).write_bytes(content)
    for command in COMMANDS:
        assert launchers([command, str(SWEEP)]) in (0, 1)
        assert "manifest.json anew" in capsys.readouterr().err
    assert resume() == 2
    assert "Type the sweep's command again" in capsys.readouterr().err
    assert dino(*ON_SLURM, "trainer.seed=0,1") == 0
    assert "Skipped: 1 finished." in capsys.readouterr().out
    (aside,) = SWEEP.glob("manifest.json.damaged*")
    assert aside.read_bytes() == content
    overrides = sorted(entry.overrides for entry in the_sweep().runs.values())
    assert overrides == [["trainer.seed=0"], ["trainer.seed=1"]]


def test_settings_that_do_not_fit_are_named(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    submit([0])
    cluster.move({"100_0": "FAILED"})
    content = json.loads(Manifest.path(SWEEP).read_text())
    for wrong in ({"launcher": "x"}, {"settings": {"nodes": "many"}}, {"settings": {"nodes": {"a": 1}}}):
        Manifest.path(SWEEP).write_text(json.dumps(content | wrong))
        assert resume() == 2
        assert capsys.readouterr().err.count("ype the sweep's command again") == 1


def test_a_sweep_whose_lock_is_a_folder_is_refused(
    here: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit([0])
    lock = here / SWEEP / ".manifest.lock"
    lock.unlink()
    lock.mkdir()
    for command in ("cancel", "resume"):
        assert launchers([command, str(here / SWEEP)]) == 2
        assert f"{lock}: it is a folder" in capsys.readouterr().err


def test_a_damaged_status_is_written_anew_with_the_id_of_the_tracker(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit([0, 1])
    cluster.move({"100_0": "FAILED", "100_1": "FAILED"})
    run = directory(0)
    (run.path / "wandb" / "offline-run-20260101_120000-abc123abc123").mkdir(parents=True)
    run.status_file.write_bytes(b"")
    assert launchers(["status", str(SWEEP)]) == 1
    assert "status.json cannot be read" in capsys.readouterr().out
    assert resume() == 0
    status = run.read_status()
    assert (status["state"], status["tracker_id"]) == ("pending", "abc123abc123")
    assert (run.path / "status.json.damaged").exists()


def test_a_damaged_configuration_is_named_and_written_anew(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit([0, 1])
    cluster.move({"100_0": "FAILED", "100_1": "FAILED"})
    whole = directory(0).config_file.read_bytes()
    directory(0).config_file.write_bytes(whole[:99])
    assert resume() == 2
    said = capsys.readouterr()
    assert "submitted 1 run" in said.out
    assert said.err.count("config.yaml: not the complete configuration of a run") == 1
    assert dino(*ON_SLURM, "trainer.seed=0,1") == 0
    assert directory(0).config_file.read_bytes() == whole
    assert (directory(0).path / "config.yaml.damaged").read_bytes() == whole[:99]


# ---- links and names ---------------------------------------------------------------------------------------


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_written_behind_a_link(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, victim = directory(0), tmp_path / "victim"
    run.mark(state="preempted")
    run.path.rename(victim)
    run.path.symlink_to(victim)
    before = content(victim)
    assert dino(*LOCALLY, "trainer.seed=0,1") == 2
    assert not Manifest.path(SWEEP).exists()
    entry = Entry(["trainer.seed=0"], Wanted("", (), config(0)).config_hash, "local")
    Manifest(SWEEP, "local", {}, {run.path.name: entry}).save()
    assert resume() == 2
    assert "a link to" in capsys.readouterr().err
    assert content(victim) == before


def test_a_log_that_is_a_link_is_not_written_through(
    played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for seed, name in ((0, "log.txt"), (1, "traceback.txt")):
        directory(seed).path.mkdir(parents=True)
        (directory(seed).path / name).symlink_to(victim)
    submit([0, 1], launcher="local")
    wait_until(lambda: "log.txt: a link" in (SWEEP / QUEUE_LOG).read_text())
    assert victim.read_text() == "mine"


def test_a_name_that_leads_out_of_the_sweep_is_refused_by_every_command(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory(0).mark(state="preempted")
    directory(0).path.rename(SWEEP.with_name("victim"))
    entry = Entry(["trainer.seed=0"], Wanted("", (), config(0)).config_hash, "local")
    Manifest(SWEEP, "local", {}, {"../victim": entry}).save()
    before = content(here)
    for command in (*COMMANDS, "resume", "cancel"):
        assert launchers([command, str(SWEEP)]) == 2
        assert "'../victim' is not the name of a run" in capsys.readouterr().err
    assert dino(*LOCALLY, "trainer.seed=0,1") == 2
    assert "'../victim' is not the name of a run" in capsys.readouterr().err
    assert load_sweep(SWEEP).runs == []
    assert content(here) == before
