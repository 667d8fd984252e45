"""`python -m launchers COMMAND FOLDER`, and its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import parquet

from dino_exp.runs.manifest import Manifest
from launchers import slurm, watch
from launchers.__main__ import main as launchers
from launchers.children import ROOT
from tests.launchers.doubles import (
    SWEEP,
    Cluster,
    Played,
    by_seed,
    directory,
    jobs,
    mark,
    resume,
    submit,
    the_sweep,
)
from tests.programs import run_program


@pytest.fixture
def four(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> Cluster:
    """A sweep whose runs are pending, running, finished and failed."""
    submit(range(4))
    mark(1, state="running", step=3, total_steps=8)
    mark(2, state="finished").write_summary({"knn_top1": 61.5, "verdict": "learns"})
    mark(3, state="failed").write_traceback("Traceback\nValueError: a loss of NaN\n")
    cluster.set(jobs={"100_0": "PENDING", "100_1": "RUNNING", "100_2": "COMPLETED", "100_3": "FAILED"})
    cluster.forget_calls()
    capsys.readouterr()
    return cluster


def test_status(four: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert launchers(["status", str(SWEEP)]) == 1
    shown = capsys.readouterr().out
    assert "4 runs: 1 finished, 1 running, 1 pending, 1 failed" in shown
    assert "ValueError: a loss of NaN" in shown
    assert len(four.calls("squeue")) == 1
    mark(3, state="finished")
    assert launchers(["status", str(SWEEP)]) == 0
    four.set(jobs={})
    assert launchers(["status", str(SWEEP)]) == 1
    assert "2 lost" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "logs"])
def test_what_others_wrote_is_shown_and_not_obeyed(
    four: Cluster, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    hostile = "[/red]\x1b[2J\x1b]0;title\x07\x9b31m\u202e"
    shown = r"[/red]\x1b[2J\x1b]0;title\x07\x9b31m\u202e"
    manifest = Manifest.load(SWEEP)
    for entry in manifest.runs.values():
        entry.overrides = [f"name={hostile}"]
    manifest.save()
    directory(3).traceback_file.write_text(f"ValueError: {hostile}\r\n")
    (directory(0).path / "log.txt").write_text(f"a line {hostile}\n")
    mark(2, state="finished").write_summary({"knn_top1": 61.5, "verdict": hostile})
    assert launchers([command, str(SWEEP)]) in (0, 1)
    written = capsys.readouterr().out
    assert f"name={shown}" in written
    assert f"ValueError: {shown}" in written
    assert re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", written) is None


def test_collect_writes_names_that_are_not_unicode(four: Cluster) -> None:
    manifest = Manifest.load(SWEEP)
    manifest.runs[directory(2).path.name].overrides = ["data.root=/data/\udce9t\udce9"]
    manifest.save()
    assert launchers(["collect", str(SWEEP)]) == 0
    assert r"/data/\xe9t\xe9" in parquet.read_table(SWEEP / "runs.parquet")["data.root"].to_pylist()


def test_wait_prints_each_change_of_state_until_no_run_is_active(
    four: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(seconds: float) -> None:
        """Let the runs proceed while the command sleeps."""
        mark(1, state="finished")
        begun = directory(0).read_status()["state"] == "running"
        mark(0, state="finished" if begun else "running", heartbeat=time.time())

    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=meanwhile))
    assert launchers(["wait", str(SWEEP)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:7] == [
        "trainer.seed=0: pending",
        "trainer.seed=1: running",
        "trainer.seed=2: finished",
        "trainer.seed=3: failed",
        "trainer.seed=0: running",
        "trainer.seed=1: finished",
        "trainer.seed=0: finished",
    ]


def test_ctrl_c_stops_the_waiting_and_no_run(
    four: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=ctrl_c))
    assert launchers(["wait", str(SWEEP)]) == 130
    assert f"The runs continue. python -m launchers status {SWEEP}" in capsys.readouterr().out
    assert four.calls("scancel") == []


def test_collect(four: Cluster) -> None:
    assert launchers(["collect", str(SWEEP)]) == 0
    table = parquet.read_table(SWEEP / "runs.parquet")
    assert table.column("trainer.seed").to_pylist() == [0, 1, 2, 3]
    assert table.column("state").to_pylist() == ["pending", "running", "finished", "failed"]
    assert table.column("knn_top1").to_pylist() == [None, None, 61.5, None]


def test_resume_submits_lost_runs_with_changed_settings(four: Cluster) -> None:
    four.move({"100_1": "NODE_FAIL"})
    assert launchers(["resume", str(SWEEP), "partition=long", "sbatch.exclude=node7"]) == 0
    assert jobs() == {0: ["100_0"], 1: ["100_1", "101_0"], 2: ["100_2"], 3: ["100_3", "101_1"]}
    assert "#SBATCH --partition=long\n" in four.script("101")
    assert "#SBATCH --exclude=node7\n" in four.script("101")
    assert the_sweep().settings["partition"] == "long"


def test_resume_after_everything_went_well_does_nothing(
    four: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(4):
        mark(seed, state="finished")
    assert launchers(["resume", str(SWEEP)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{SWEEP}: submitted 0 runs.", "Skipped: 4 finished."]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("partitoin=long", "partitoin"),
        ("nodes=0", "hydra.launcher.nodes = 0: must be"),
        ("time_limit=soon", "hydra.launcher.time_limit = soon: not a duration"),
    ],
)
def test_resume_refuses_what_the_command_line_would(
    four: Cluster, capsys: pytest.CaptureFixture[str], change: str, error: str
) -> None:
    assert launchers(["resume", str(SWEEP), change]) == 2
    assert error in capsys.readouterr().err
    assert four.calls("sbatch") == []
    assert the_sweep().settings["partition"] is None


def test_cancel_takes_only_those_that_are_named(four: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert launchers(["cancel", str(SWEEP), "seed=1"]) == 0
    assert four.calls("scancel") == [["100_1"]]
    names = by_seed(the_sweep())
    assert [seed for seed, name in names.items() if the_sweep().runs[name].cancelled] == [1]
    assert launchers(["cancel", str(SWEEP), "seed=9"]) == 2
    assert "seed=9: no run of this sweep has that in its name or overrides." in capsys.readouterr().err
    assert len(four.calls("scancel")) == 1


def test_cancel_fails_without_an_answer_of_slurm(four: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    four.without("scancel")
    assert launchers(["cancel", str(SWEEP)]) == 2
    assert "SLURM does not answer; try again" in capsys.readouterr().err


def test_runs_are_marked_as_cancelled_before_scancel_and_can_be_resumed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(range(3))
    mark(1, state="running")
    mark(2, state="finished")
    cluster.move({"100_1": "RUNNING", "100_2": "COMPLETED"})
    marked_before: list[bool] = []
    scancel = slurm.cancel

    def watched(jobs: list[str]) -> None:
        marked_before.extend(entry.cancelled for entry in the_sweep().runs.values())
        scancel(jobs)

    monkeypatch.setattr(slurm, "cancel", watched)
    assert launchers(["cancel", str(SWEEP)]) == 0
    assert marked_before == [True, True, False]
    assert cluster.calls("scancel") == [["100_0", "100_1"]]
    mark(1, state="preempted")  # it has saved
    assert resume() == 0
    assert jobs() == {0: ["100_0", "101_0"], 1: ["100_1", "101_1"], 2: ["100_2"]}
    assert not any(entry.cancelled for entry in the_sweep().runs.values())


def test_a_shared_job_is_cancelled_once_no_other_run_needs_it(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(range(4), "runs_per_gpu=2")
    mark(0, state="finished")
    assert launchers(["cancel", str(SWEEP), "seed=2"]) == 0
    assert cluster.calls("scancel") == []
    assert "Job 100_1 also has runs that were not named" in capsys.readouterr().out
    assert launchers(["cancel", str(SWEEP)]) == 0
    assert cluster.calls("scancel") == [["100_0", "100_1"]]


def test_logs(four: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(4):
        (directory(seed).path / "log.txt").write_text(f"first of {seed}\nlast of {seed}\n")
    assert launchers(["logs", str(SWEEP), "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert [f"last of {seed}" in shown for seed in range(4)] == [True, True, False, True]
    assert "first of" not in shown
    assert launchers(["logs", str(SWEEP), "seed=2"]) == 0
    assert "first of 2\nlast of 2\n" in capsys.readouterr().out


def test_a_run_without_a_log_is_shown_with_its_jobs_log(
    four: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    (SWEEP / "jobs" / "100_0_0_log.out").write_text("slurmstepd: error: execve(): python: No such file\n")
    four.move({"100_0": "FAILED"})
    assert launchers(["status", str(SWEEP)]) == 1
    shown = capsys.readouterr().out
    assert "job ended as FAILED" in shown
    assert "execve(): python: No such file" in shown


@pytest.mark.parametrize("command", ["status", "wait", "collect", "resume", "cancel", "logs"])
def test_a_folder_without_a_sweep(here: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert launchers([command, "outputs/nothing"]) == 2
    assert "outputs/nothing: no manifest.json there; give the folder of a sweep" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.spawn
def test_the_commands_do_not_import_torch(here: Path) -> None:
    code = (
        "import sys; from launchers.__main__ import main; "
        "print(main(['status', 'nothing']), {'torch', 'timm', 'wandb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 set()\n"


def test_train_py_itself_submits(cluster: Cluster, played: Played) -> None:
    words = "-m experiment=debug hydra/launcher=slurm hydra.launcher.detach=true trainer.seed=0,1"
    done = run_program("train.py", *words.split(), folder=Path.cwd())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{SWEEP}: submitted 2 runs as job 100.\n")
    assert jobs() == {0: ["100_0"], 1: ["100_1"]}
