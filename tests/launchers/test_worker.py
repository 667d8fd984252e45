"""A job's task: its runs' place and share, how it sees them off, and whether it goes back into the queue."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dino_exp.parallel.processes import Processes
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

# ---- place and share ------------------------------------------------------------------------------------


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
def test_a_task_tells_its_process_its_place(
    tmp_path: Path, changes: dict[str, str], expected: Processes
) -> None:
    variables = worker.environment(RunDirectory(tmp_path), TWO_BY_TWO | changes, 1)
    place = Processes.from_environment(variables)
    assert place.rendezvous == tmp_path / ".rendezvous.31-0"
    assert (place.rank, place.count) == (expected.rank, expected.count)
    assert (place.local_rank, place.local_count) == (expected.local_rank, expected.local_count)
    assert variables["SLURM_CPUS_PER_TASK"] == "6"
    assert "CUDA_VISIBLE_DEVICES" not in variables  # it stays as SLURM has it


def test_every_attempt_meets_at_a_place_of_its_own(tmp_path: Path) -> None:
    again = worker.environment(RunDirectory(tmp_path), TWO_BY_TWO | {"SLURM_RESTART_COUNT": "2"}, 1)
    assert Processes.from_environment(again).rendezvous == tmp_path / ".rendezvous.31-2"


@pytest.mark.parametrize(("runs", "cores"), [(1, "6"), (2, "3"), (4, "1"), (8, "1")])
def test_one_task_leaves_its_runs_alone_and_shares_out_the_cores(
    tmp_path: Path, runs: int, cores: str
) -> None:
    one = TWO_BY_TWO | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    variables = worker.environment(RunDirectory(tmp_path), one, runs)
    assert variables == {"SLURM_CPUS_PER_TASK": cores}
    assert Processes.from_environment(variables) == Processes()


# ---- seeing a run off -----------------------------------------------------------------------------------


def ended(directory: RunDirectory) -> Child:
    """A run that has come to its end."""
    child = Child.start(directory, {})
    wait_until(lambda: child.ended)
    return child


def test_a_run_that_ends_without_a_word_has_failed(played: Played) -> None:
    directory = played.run("a", "exit 3")
    child = ended(directory)
    assert child.see_off() == 3
    assert directory.read_status()["state"] == "failed"
    traceback = directory.traceback_file.read_text()
    assert traceback.startswith("exit code 3; log.txt ends with:\n")
    assert "a last word" in traceback
    assert tail(child.log, 1).endswith("ended: exit code 3")


def test_a_run_that_the_system_kills_says_why(played: Played) -> None:
    directory = played.run("a", "kill")
    assert ended(directory).see_off() == 128 + signal.SIGKILL
    assert directory.read_status()["state"] == "failed"
    assert "log.txt: killed by SIGKILL, as the system does when memory runs out" in (
        directory.traceback_file.read_text()
    )


def test_a_run_that_failed_keeps_its_own_words(played: Played) -> None:
    directory = played.run("a", "fail")
    assert ended(directory).see_off() == 1
    assert directory.traceback_file.read_text() == "ValueError: a loss of NaN\n"


def test_a_run_that_finished(played: Played) -> None:
    directory = played.run("a", "finish")
    assert ended(directory).see_off() == 0
    assert directory.read_status()["state"] == "finished"
    assert not directory.traceback_file.exists()


@pytest.mark.parametrize("do", ["wait", "deaf"])
def test_a_run_that_is_told_to_stop_may_go_on_later(played: Played, do: str) -> None:
    directory = played.run("a", do)
    child = Child.start(directory, {})
    wait_until(lambda: directory.read_status()["state"] == "running")
    child.tell(signal.SIGTERM)
    wait_until(lambda: child.ended)
    assert child.stopped
    assert child.see_off() == 128 + signal.SIGTERM
    assert directory.read_status()["state"] == "preempted"
    assert not directory.traceback_file.exists()


def test_a_run_that_another_process_has_is_left_to_it(played: Played) -> None:
    directory = played.run("a", "exit 2")
    directory.mark(state="running")
    directory.hold()
    code = ended(directory).see_off()
    directory.release()
    assert code == 2
    assert directory.read_status()["state"] == "running"
    assert not directory.traceback_file.exists()


def test_the_end_of_a_log_without_what_a_display_overwrites(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert tail(log, 3) == ""
    log.write_bytes(b"x" * 10_000 + b"\none\nstep 1\rstep 2\rstep 3\nthr\xffee\n")
    assert tail(log, 3) == "one\nstep 3\nthr�ee"


# ---- a task's work --------------------------------------------------------------------------------------


class Job:
    """One task of a job in a sweep of runs that are played."""

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
        """As `time.sleep`, but SLURM does not take its time to end the task."""
        self.slept.append(seconds)
        time.sleep(min(seconds, 0.01))

    def work(self, max_requeues: int = 100, **variables: str) -> int:
        """Its exit code."""
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as leaving:
            worker.work(str(self.folder), self.names, max_requeues)
        return int(leaving.value.code or 0)

    def states(self) -> list[str]:
        """Of its runs."""
        return [directory.read_status()["state"] for directory in self.directories]

    def cancel(self, *names: str) -> None:
        """As `python -m launchers cancel` does first."""
        manifest = Manifest.load(self.folder)
        for name in names:
            manifest.runs[name].cancelled = True
        manifest.save()


@pytest.fixture
def job(played: Played, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a `Job` from its runs and what they do."""
    return lambda **runs: Job(played, cluster, monkeypatch, **runs)


def seen(directory: RunDirectory) -> dict[str, Any]:
    """What a run found when it started."""
    content: dict[str, Any] = json.loads((directory.path / "seen.json").read_text())
    return content


def test_one_run_that_fails_leaves_its_neighbors_alone(job: Any) -> None:
    task = job(a="finish", b="fail", c="kill", d="finish")
    assert task.work() > 0
    assert task.states() == ["finished", "failed", "failed", "finished"]
    assert [directory.traceback_file.exists() for directory in task.directories] == [False, True, True, False]
    assert [seen(directory)["share"] for directory in task.directories] == [4] * 4
    assert [seen(directory)["SLURM_CPUS_PER_TASK"] for directory in task.directories] == ["1"] * 4


def test_a_job_whose_runs_finish_is_well(job: Any) -> None:
    task = job(a="finish", b="finish")
    assert task.work() == 0
    assert task.states() == ["finished", "finished"]
    assert seen(task.directories[0])["SLURM_CPUS_PER_TASK"] == "2"


def test_what_has_ended_is_not_begun_again(job: Any) -> None:
    task = job(a="finish", b="finish")
    task.directories[0].mark(state="failed")
    assert task.work() == 1  # a failed run is a failed job, in the attempt after it too
    assert task.states() == ["failed", "finished"]
    assert not (task.directories[0].path / "log.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_job_that_is_preempted_or_out_of_time_goes_back_into_the_queue(job: Any, number: int) -> None:
    task = job(a="finish", b=f"signal {int(number)} a/done")
    assert task.work(SLURM_RESTART_COUNT="4") == worker.FAILED_TO_REQUEUE
    assert task.states() == ["finished", "preempted"]
    assert task.cluster.calls("scontrol") == [["requeue", "50"]]
    assert task.slept[-1] == 60  # SLURM ends it in this time
    assert "job 50 is back in the queue" in (task.directories[0].path / "log.txt").read_text()


def test_a_signal_after_the_last_run_has_ended_changes_nothing(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, see_off = job(a="finish"), Child.see_off

    def told_too_late(child: Child) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return see_off(child)

    monkeypatch.setattr(Child, "see_off", told_too_late)
    assert task.work() == 0
    assert task.states() == ["finished"]
    assert task.cluster.calls("scontrol") == []


def test_a_job_is_not_requeued_for_ever(job: Any) -> None:
    task = job(a="signal 15")
    assert task.work(max_requeues=3, SLURM_RESTART_COUNT="3") == worker.FAILED_TO_REQUEUE
    assert task.states() == ["preempted"]
    assert task.cluster.calls("scontrol") == []
    assert "hydra.launcher.max_requeues = 3 is reached" in tail(task.directories[0].path / "log.txt", 1)


def test_a_job_that_slurm_will_not_requeue_says_so(job: Any) -> None:
    task = job(a="signal 15")
    task.cluster.without("scontrol")
    install_refusal(task.cluster.folder / "scontrol")
    assert task.work() == worker.FAILED_TO_REQUEUE
    said = tail(task.directories[0].path / "log.txt", 1)
    assert said.endswith("not requeued: Requested operation is presently disabled; resume the sweep")


def test_a_job_that_cannot_ask_slurm_stays_as_it_is(job: Any) -> None:
    task = job(a="signal 15")
    task.cluster.without("squeue")  # as in a container
    assert task.work() == worker.FAILED_TO_REQUEUE
    assert task.states() == ["preempted"]
    assert task.cluster.calls("scontrol") == []
    assert "not requeued: squeue does not answer here" in tail(task.directories[0].path / "log.txt", 1)


def install_refusal(place: Path) -> None:
    """A command that SLURM's administrator has switched off."""
    place.write_text("#!/bin/sh\necho Requested operation is presently disabled >&2\nexit 1\n")
    place.chmod(0o755)


def test_a_cancelled_run_is_not_raised_from_the_dead(job: Any) -> None:
    task = job(a="finish", b="signal 15")
    task.cancel("b")
    (task.directories[1].path / "log.txt").write_text("")
    task.directories[1].mark(state="pending")
    assert task.work() == 0
    assert task.states() == ["finished", "pending"]  # it was cancelled before its job began
    assert tail(task.directories[1].path / "log.txt", 1) == ""


def test_runs_that_are_cancelled_while_they_train(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_job_that_was_taken_by_scancel_stays_gone(job: Any, state: str) -> None:
    task = job(a="finish", b="signal 15 a/done")
    task.cluster.set(jobs={"50": state})
    assert task.work() == worker.FAILED_TO_REQUEUE
    assert task.states() == ["finished", "cancelled"]
    assert task.cluster.calls("scontrol") == []


def test_tasks_but_the_first_leave_the_requeue_to_it(job: Any) -> None:
    task = job(a="signal 15")
    assert task.work(**{**TWO_BY_TWO, "SLURM_JOB_ID": "50"}) == 0
    assert task.cluster.calls("scontrol") == []
    assert seen(task.directories[0])["RANK"] == "3"
    assert (task.directories[0].path / "log.3.txt").exists()
