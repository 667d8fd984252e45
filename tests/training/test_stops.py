"""Stops by signals and by disks: wherever they come, nothing is lost, and a resume ends in the same run."""

import errno
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_exp.errors import FAILED
from dino_exp.eval import neighbors
from dino_exp.eval.periodic import PeriodicEvaluations
from dino_exp.parallel.processes import STOPPING
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint, run, trainer
from dino_exp.training.attempt import attempt
from dino_exp.training.run import train
from tests.training.test_run import (
    STOCHASTIC,
    Views,
    assert_same_weights,
    before_step,
    configuration,
    only_run,
    start,
    steps_logged,
)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    path = tmp_path_factory.mktemp("never_stopped") / "run"
    assert train(configuration(STOCHASTIC), path).state == "finished"
    return RunDirectory(path)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_saves_at_the_next_step_and_the_run_resumes(
    tmp_path: Path,
    number: signal.Signals,
    never_stopped: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = configuration(STOCHASTIC)
    with monkeypatch.context() as patch:
        send_at(patch, 6, number)
        stopped = train(cfg, tmp_path / "run")
    assert (stopped.state, stopped.exit_code) == ("preempted", 128 + number)
    directory = RunDirectory(tmp_path / "run")
    assert directory.read_status()["state"] == "preempted"
    assert checkpoint.load(directory.checkpoints / "last.pt")["step"] == directory.read_status()["step"] == 6
    assert not directory.summary_file.exists()
    assert train(cfg, tmp_path / "run").state == "finished"
    assert steps_logged(directory) == list(range(17))
    assert_same_weights(directory, never_stopped)


def test_a_closed_terminal_stops_no_run_under_nohup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send_at(monkeypatch, 2, signal.SIGHUP)
        assert train(configuration("trainer.max_steps=3"), tmp_path / "run").state == "finished"
    finally:
        signal.signal(signal.SIGHUP, before)


MACHINE = {"images_per_second", "data_wait_share", "peak_memory_mib"}
"""Metrics that no two runs have in common."""


def result_of(directory: RunDirectory) -> list[Any]:
    """Return lines, last checkpoint and k-NN figures, without what is timed."""
    lines, summary = read_metrics(directory.metrics_file), directory.read_summary()
    state = checkpoint.load(directory.checkpoints / "last.pt")
    for each in (*lines, state["last_metrics"], *state["logged"]):
        for name in MACHINE & each.keys():
            del each[name]
    for name in ("config", "seconds", "training_seconds"):
        del state[name]
    return [lines, plain(state), {key: value for key, value in summary.items() if key.endswith("top1")}]


def plain(value: Any) -> Any:
    """Return nested containers with tensors as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(
    ("call", "step", "logged"),
    [(1, 0, []), (3, 8, range(8)), (5, 16, range(16))],
    ids=["untrained", "student at step 8", "student at the last step"],
)
def test_a_signal_during_k_nn_ends_it_at_once_and_the_resume_makes_it_up(
    tmp_path: Path,
    call: int,
    step: int,
    logged: Sequence[int],
    never_stopped: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stop in the `call`-th k-NN of the run: no step is lost, and the end is that of a run never stopped."""
    cfg, predict, calls, went_on = configuration(STOCHASTIC), neighbors.predict, [], []

    def stopping(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(step)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
            went_on.append(step)
        return predict(*args, **kwargs)

    monkeypatch.setattr(neighbors, "predict", stopping)
    stopped = train(cfg, tmp_path / "run")
    assert (stopped.state, stopped.exit_code, went_on) == ("preempted", 128 + signal.SIGTERM, [])
    directory = RunDirectory(tmp_path / "run")
    assert (directory.read_status()["state"], directory.read_status()["step"]) == ("preempted", step)
    assert (directory.checkpoints / "last.pt").exists() == bool(step)
    assert steps_logged(directory) == list(logged) if logged else not directory.metrics_file.read_text()
    assert not directory.summary_file.exists()

    assert train(cfg, tmp_path / "run").state == "finished"
    assert result_of(directory) == result_of(never_stopped)
    best = [checkpoint.load(each.checkpoints / "best.pt") for each in (directory, never_stopped)]
    assert best[0]["step"] == best[1]["step"]


@pytest.mark.parametrize(("grace", "seconds", "state"), [(0.05, 60, "preempted"), (60, 0, "collapsed")])
def test_a_run_that_is_stopped_at_its_end_closes_if_it_can_soon_and_trains_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grace: float, seconds: float, state: str
) -> None:
    def stopping(_: PeriodicEvaluations) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        return 40.0

    stop = ("trainer.epochs=40", "trainer.on_collapse=stop", "loss.centering=none", "eval=knn_small")
    cfg = configuration(
        *stop, "trainer.log_every=10", "trainer.checkpoint_every=100", "eval.every_epochs=1000"
    )
    with monkeypatch.context() as patch:
        patch.setattr(PeriodicEvaluations, "pixels_top1", stopping)
        patch.setattr(run, "CLOSING_SECONDS", grace)
        assert train(cfg, tmp_path / "run").state == state
    at = RunDirectory(tmp_path / "run").read_status()["step"]
    resumed = train(cfg, tmp_path / "run")
    assert (resumed.state, RunDirectory(tmp_path / "run").read_summary()["steps"]) == ("collapsed", at)


def test_lines_reach_the_disk_before_the_checkpoint_that_a_resume_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, append, fsync = [], RunDirectory.append_metrics, os.fsync

    def appending(self: RunDirectory, metrics: dict[str, Any]) -> None:
        append(self, metrics)
        events.append("line")

    def flushing(descriptor: int) -> None:
        fsync(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        events.append(name.strip(".").removesuffix(".partial").rpartition(".")[0])

    monkeypatch.setattr(RunDirectory, "append_metrics", appending)
    monkeypatch.setattr(os, "fsync", flushing)
    assert train(configuration("trainer.max_steps=3", "trainer.checkpoint_every=1"), tmp_path / "run")
    saves = [number for number, event in enumerate(events) if event == "last.pt"]
    assert len(saves) == 4
    for save in saves:
        lines = [number for number, event in enumerate(events[:save]) if event == "line"]
        assert "metrics" in events[lines[-1] : save]


@pytest.mark.parametrize("name", ["last.pt", "status.json", "metrics.jsonl", "summary.json", "best.pt"])
def test_a_full_disk_is_called_that_and_the_run_resumes_when_there_is_room(
    tmp_path: Path,
    name: str,
    never_stopped: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cfg, fsync, full = configuration(STOCHASTIC), os.fsync, RunDirectory(tmp_path / "run")

    def fails(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if (
            path.name.strip(".").startswith(name)
            and full.metrics_file.exists()
            and len(steps_logged(full)) > 5
        ):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        patch.setattr(trainer, "HEARTBEAT_SECONDS", 0.0)
        outcome = attempt(cfg, full.path, None)
    file = full.checkpoints / name if name.endswith(".pt") else full.path / name
    words = f"{file}: the disk is full"
    assert (outcome.state, outcome.exit_code, outcome.message) == ("failed", FAILED, words)
    resume = "Once that is repaired, the same command resumes from the last checkpoint."
    assert capsys.readouterr().err == f"{words}. {resume}\n"
    assert full.traceback_file.read_text().endswith(f"\n{words}\n")
    assert full.read_status()["state"] == ("running" if name == "status.json" else "failed")
    assert attempt(cfg, full.path, None).state == "finished"
    assert result_of(full) == result_of(never_stopped)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_to_the_loader_processes_too_saves_as_well(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C and SLURM's preemption signal every process of a run."""
    long = ("trainer.num_workers=2", "trainer.epochs=40", "trainer.checkpoint_every=320")
    process = start(tmp_path, *long, own_group=True)
    process.until_it_says("/320")
    os.killpg(process.pid, number)
    assert process.wait() == 128 + number, process.output
    directory = only_run(tmp_path)
    assert directory.read_status()["state"] == "preempted"
    assert checkpoint.load(directory.checkpoints / "last.pt")["step"] == directory.read_status()["step"] > 0
    assert not directory.traceback_file.exists()


def send_at(patch: pytest.MonkeyPatch, step: int, *signals: signal.Signals) -> None:
    """Send signals to this process during the `step`-th step of the run."""

    def send(views: Views) -> Views:
        for number in signals:
            os.kill(os.getpid(), number)
        return views

    before_step(patch, step, send)


def test_a_second_ctrl_c_exits_at_once_with_the_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        send_at(patch, 8, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(configuration(), tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    assert checkpoint.load(directory.checkpoints / "last.pt")["step"] == 5
    assert directory.read_status()["state"] == "preempted"
    assert not directory.traceback_file.exists()
    assert train(configuration(), tmp_path / "run").state == "finished"
