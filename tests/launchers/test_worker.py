"""A task of a SLURM job: variables of its processes, recorded exits, and requeues."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dino_exp.parallel.processes import SHARED_BATCHES, Processes
from dino_exp.runs.manifest import Entry, Manifest
from dino_exp.runs.run_directory import RunDirectory
from launchers import worker
from launchers.children import Child, tail
from tests.launchers.doubles import Cluster, Played, wait_until

TWO_BY_TWO = {
    "SLURM_JOB_ID": "31",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_CPUS_PER_TASK": "6",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "CUDA_VISIBLE_DEVICES": "0,1",
}

# ---- ranks and shares -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Processes(3, 4, 1, 2)),
        ({"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}, Processes(0, 4, 0, 2)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, Processes(3, 4, 0, 1)),  # SLURM bound one GPU to each task
        ({"CUDA_VISIBLE_DEVICES": ""}, Processes(3, 4, 1, 2)),
        ({"SLURM_STEP_TASKS_PER_NODE": "3,1", "SLURM_LOCALID": "0"}, Processes(3, 4, 0, 1)),
        (
            {
                "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
                "SLURM_NTASKS": "5",
                "SLURM_PROCID": "4",
                "SLURM_NODEID": "2",
                "SLURM_LOCALID": "0",
            },
            Processes(4, 5, 0, 1),
        ),
    ],
)
def test_a_process_learns_its_ranks_from_its_task(
    tmp_path: Path, changes: dict[str, str], expected: Processes
) -> None:
    variables = worker.process_variables(RunDirectory(tmp_path), TWO_BY_TWO | changes, 1)
    found = Processes.from_environment(variables)
    assert found.rendezvous == tmp_path / ".rendezvous.31-0"
    assert (found.rank, found.count) == (expected.rank, expected.count)
    assert (found.local_rank, found.local_count) == (expected.local_rank, expected.local_count)
    assert variables["SLURM_CPUS_PER_TASK"] == "6"
    assert "CUDA_VISIBLE_DEVICES" not in variables  # it stays as SLURM set it


def test_every_attempt_has_its_own_rendezvous_file(tmp_path: Path) -> None:
    again = worker.process_variables(RunDirectory(tmp_path), TWO_BY_TWO | {"SLURM_RESTART_COUNT": "2"}, 1)
    assert Processes.from_environment(again).rendezvous == tmp_path / ".rendezvous.31-2"


@pytest.mark.parametrize(("runs", "cores"), [(1, "6"), (2, "3"), (4, "1"), (8, "1")])
def test_runs_of_a_single_task_are_single_processes_that_share_its_cores(
    tmp_path: Path, runs: int, cores: str
) -> None:
    one = TWO_BY_TWO | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    variables = worker.process_variables(RunDirectory(tmp_path), one, runs)
    assert variables == {"SLURM_CPUS_PER_TASK": cores}
    assert Processes.from_environment(variables) == Processes()


# ---- recorded exits -------------------------------------------------------------------------------------


def ended(directory: RunDirectory) -> Child:
    """Return the process of a run after its exit."""
    child = Child.start(directory, {})
    wait_until(lambda: child.ended)
    return child


def test_an_exit_that_the_run_did_not_record_is_a_failure(played: Played) -> None:
    directory = played.run("a", "exit 3")
    child = ended(directory)
    assert child.record_exit() == 3
    assert directory.read_status()["state"] == "failed"
    traceback = directory.traceback_file.read_text()
    assert traceback.startswith("exit code 3; log.txt ends with:\n")
    assert "a last word" in traceback
    assert tail(child.log, 1).endswith("ended: exit code 3")


def test_a_killed_run_has_the_signal_in_its_traceback(played: Played) -> None:
    directory = played.run("a", "kill")
    assert ended(directory).record_exit() == 128 + signal.SIGKILL
    assert directory.read_status()["state"] == "failed"
    why = directory.traceback_file.read_text()
    assert "log.txt: killed by SIGKILL, usually because memory ran out" in why


def test_a_failed_run_keeps_its_own_traceback(played: Played) -> None:
    directory = played.run("a", "fail")
    assert ended(directory).record_exit() == 1
    assert directory.traceback_file.read_text() == "ValueError: a loss of NaN\n"


def test_a_finished_run_is_left_as_it_is(played: Played) -> None:
    directory = played.run("a", "finish")
    assert ended(directory).record_exit() == 0
    assert directory.read_status()["state"] == "finished"
    assert not directory.traceback_file.exists()


@pytest.mark.parametrize("do", ["wait", "deaf"])
def test_a_run_that_gets_a_stop_signal_is_preempted(played: Played, do: str) -> None:
    directory = played.run("a", do)
    child = Child.start(directory, {})
    wait_until(lambda: directory.read_status()["state"] == "running")
    child.send(signal.SIGTERM)
    wait_until(lambda: child.ended)
    assert child.stopped
    assert child.record_exit() == 128 + signal.SIGTERM
    assert directory.read_status()["state"] == "preempted"
    assert not directory.traceback_file.exists()


def test_a_run_that_another_process_holds_is_not_changed(played: Played) -> None:
    directory = played.run("a", "exit 2")
    directory.mark(state="running")
    directory.hold()
    code = ended(directory).record_exit()
    directory.release()
    assert code == 2
    assert directory.read_status()["state"] == "running"
    assert not directory.traceback_file.exists()


def test_tail_drops_text_that_a_display_has_overwritten(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert tail(log, 3) == ""
    log.write_bytes(b"x" * 10_000 + b"\none\nstep 1\rstep 2\rstep 3\nthr\xffee\n")
    assert tail(log, 3) == "one\nstep 3\nthr�ee"


# ---- the work of a task ---------------------------------------------------------------------------------


class Job:
    """A task of a job in a sweep of fake runs."""

    def __init__(
        self, played: Played, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, **runs: str
    ) -> None:
        self.folder, self.cluster, self.monkeypatch = played.folder, cluster, monkeypatch
        self.names = list(runs)
        self.directories = [played.run(name, do) for name, do in runs.items()]
        self.slept: list[float] = []
        Manifest(self.folder, "slurm", {}, {name: Entry([], "", "50") for name in runs}).save()
        cluster.set(jobs={"50": "RUNNING"})
        monkeypatch.setenv("SLURM_JOB_ID", "50")
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
        monkeypatch.setattr(worker, "time", SimpleNamespace(sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        """Record the seconds, and sleep at most 10 ms, as if SLURM ended the task at once."""
        self.slept.append(seconds)
        time.sleep(min(seconds, 0.01))

    def work(self, max_requeues: int = 100, **variables: str) -> int:
        """Run the worker, and return its exit code."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as leaving:
            worker.work(str(self.folder), self.names, max_requeues)
        return int(leaving.value.code or 0)

    def states(self) -> list[str]:
        """Return the states of its runs."""
        return [directory.read_status()["state"] for directory in self.directories]

    def cancel(self, *names: str) -> None:
        """Mark runs as cancelled, as `python -m launchers cancel` does first."""
        manifest = Manifest.load(self.folder)
        for name in names:
            manifest.runs[name].cancelled = True
        manifest.save()


@pytest.fixture
def job(played: Played, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a `Job` from its runs and their instructions."""
    return lambda **runs: Job(played, cluster, monkeypatch, **runs)


def seen(directory: RunDirectory) -> dict[str, Any]:
    """Return what a run found at its start."""
    content: dict[str, Any] = json.loads((directory.path / "seen.json").read_text())
    return content


def test_a_failed_run_does_not_stop_the_other_runs_of_its_job(job: Any) -> None:
    task = job(a="finish", b="fail", c="kill", d="finish")
    assert task.work() > 0
    assert task.states() == ["finished", "failed", "failed", "finished"]
    assert [directory.traceback_file.exists() for directory in task.directories] == [False, True, True, False]
    assert [seen(directory)["share"] for directory in task.directories] == [4] * 4
    assert [seen(directory)["SLURM_CPUS_PER_TASK"] for directory in task.directories] == ["1"] * 4


def test_a_job_whose_runs_finish_exits_with_0(job: Any) -> None:
    task = job(a="finish", b="finish")
    assert task.work() == 0
    assert task.states() == ["finished", "finished"]
    assert seen(task.directories[0])["SLURM_CPUS_PER_TASK"] == "2"


@pytest.mark.parametrize(
    ("runs", "given", "found"),
    [(2, None, "/dev/shm"), (2, "/scratch", "/scratch"), (2, "", ""), (1, None, None)],
)
def test_runs_of_a_job_share_their_batches(
    job: Any, monkeypatch: pytest.MonkeyPatch, runs: int, given: str | None, found: str | None
) -> None:
    monkeypatch.delenv(SHARED_BATCHES, raising=False)
    if given is not None:
        monkeypatch.setenv(SHARED_BATCHES, given)
    task = job(**dict.fromkeys("ab"[:runs], "finish"))
    assert task.work() == 0
    assert [seen(directory).get(SHARED_BATCHES) for directory in task.directories] == [found] * runs


def test_a_run_that_has_ended_is_not_started_again(job: Any) -> None:
    task = job(a="finish", b="finish")
    task.directories[0].mark(state="failed")
    assert task.work() == 1  # a failed run fails its job, also in a later attempt of the job
    assert task.states() == ["failed", "finished"]
    assert not (task.directories[0].path / "log.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_job_that_is_preempted_or_at_its_time_limit_is_requeued(job: Any, number: int) -> None:
    task = job(a="finish", b=f"signal {int(number)} a/done")
    assert task.work(SLURM_RESTART_COUNT="4") == worker.FAILED_TO_REQUEUE
    assert task.states() == ["finished", "preempted"]
    assert task.cluster.calls("scontrol") == [["requeue", "50"]]
    assert task.slept[-1] == 60  # SLURM ends the task within this time
    assert "job 50 is back in the queue" in (task.directories[0].path / "log.txt").read_text()


def test_a_stop_signal_after_the_last_run_has_ended_changes_nothing(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, record_exit = job(a="finish"), Child.record_exit

    def signal_first(child: Child) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return record_exit(child)

    monkeypatch.setattr(Child, "record_exit", signal_first)
    assert task.work() == 0
    assert task.states() == ["finished"]
    assert task.cluster.calls("scontrol") == []
    assert "cancelled" not in (task.directories[0].path / "log.txt").read_text()


def test_a_job_is_requeued_at_most_max_requeues_times(job: Any) -> None:
    task = job(a="signal 15")
    assert task.work(max_requeues=3, SLURM_RESTART_COUNT="3") == worker.FAILED_TO_REQUEUE
    assert task.states() == ["preempted"]
    assert task.cluster.calls("scontrol") == []
    assert "hydra.launcher.max_requeues = 3 is reached" in tail(task.directories[0].path / "log.txt", 1)


def test_a_refused_requeue_is_logged(job: Any) -> None:
    task = job(a="signal 15")
    task.cluster.without("scontrol")
    install_refusal(task.cluster.folder / "scontrol")
    assert task.work() == worker.FAILED_TO_REQUEUE
    said = tail(task.directories[0].path / "log.txt", 1)
    assert said.endswith("not requeued: Requested operation is presently disabled; resume the sweep")


def test_a_job_without_squeue_is_not_requeued(job: Any) -> None:
    task = job(a="signal 15")
    task.cluster.without("squeue")  # as in a container
    assert task.work() == worker.FAILED_TO_REQUEUE
    assert task.states() == ["preempted"]
    assert task.cluster.calls("scontrol") == []
    assert "not requeued: squeue does not answer here" in tail(task.directories[0].path / "log.txt", 1)


def install_refusal(command: Path) -> None:
    """Install a command that refuses as if an administrator had disabled it."""
    command.write_text("#!/bin/sh\necho Requested operation is presently disabled >&2\nexit 1\n")
    command.chmod(0o755)


def test_a_run_that_was_cancelled_before_its_job_started_is_not_started(job: Any) -> None:
    task = job(a="finish", b="signal 15")
    task.cancel("b")
    (task.directories[1].path / "log.txt").write_text("")
    task.directories[1].mark(state="pending")
    assert task.work() == 0
    assert task.states() == ["finished", "pending"]  # it was cancelled before its job started
    assert tail(task.directories[1].path / "log.txt", 1) == ""


def test_a_run_that_is_cancelled_midway_is_not_requeued(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = job(a="finish", b="signal 15 a/done go")
    start = Child.start

    def then_cancelled(directory: RunDirectory, *rest: Any, **others: Any) -> Child:
        child = start(directory, *rest, **others)
        if directory.path.name == "b":
            task.cancel("b")
            (task.folder / "go").touch()
        return child

    monkeypatch.setattr(Child, "start", then_cancelled)
    assert task.work() == 0
    assert task.states() == ["finished", "cancelled"]
    assert task.cluster.calls("scontrol") == []


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_a_job_that_was_stopped_by_scancel_is_not_requeued(job: Any, state: str) -> None:
    task = job(a="finish", b="signal 15 a/done")
    task.cluster.set(jobs={"50": state})
    assert task.work() == worker.FAILED_TO_REQUEUE
    assert task.states() == ["finished", "cancelled"]
    assert task.cluster.calls("scontrol") == []


def test_only_the_first_task_requeues_the_job(job: Any) -> None:
    task = job(a="signal 15")
    assert task.work(**{**TWO_BY_TWO, "SLURM_JOB_ID": "50"}) == 0
    assert task.cluster.calls("scontrol") == []
    assert seen(task.directories[0])["RANK"] == "3"
    assert (task.directories[0].path / "log.3.txt").exists()
