"""States of runs, from status.json, squeue, sacct and locks; and how seldom SLURM is called."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from dino_exp.runs.manifest import Entry, Manifest
from launchers import slurm
from launchers.local import LOCAL, QUEUE_LOCK
from launchers.states import Observer
from tests.launchers.doubles import Cluster

GONE = None
Cases = dict[tuple[str, str | None, bool], tuple[str, bool]]
ON_SLURM: Cases = {
    # state in status.json, state of the job, cancelled: resulting state, active
    ("pending", "PENDING", False): ("pending", True),
    ("pending", "RUNNING", False): ("pending", True),
    ("running", "RUNNING", False): ("running", True),
    ("running", "COMPLETING", False): ("running", True),
    ("preempted", "PENDING", False): ("preempted", True),
    ("running", "PENDING", False): ("preempted", True),
    ("running", "RUNNING", True): ("running", True),
    ("pending", GONE, False): ("lost", False),
    ("running", GONE, False): ("lost", False),
    ("preempted", GONE, False): ("preempted", False),
    ("running", GONE, True): ("cancelled", False),
    ("preempted", GONE, True): ("cancelled", False),
    ("cancelled", GONE, False): ("cancelled", False),
    ("running", "NODE_FAIL", False): ("lost", False),
    ("running", "COMPLETED", False): ("lost", False),
    ("pending", "FAILED", False): ("lost", False),
    ("preempted", "TIMEOUT", False): ("preempted", False),
    ("running", "OUT_OF_MEMORY", False): ("failed", False),
    ("pending", "CANCELLED", False): ("cancelled", False),
    ("finished", "RUNNING", False): ("finished", False),
    ("finished", GONE, True): ("finished", False),
    ("collapsed", "COMPLETED", False): ("collapsed", False),
    ("failed", "FAILED", False): ("failed", False),
}


def a_sweep(folder: Path, cases: Cases) -> Manifest:
    """Return the manifest of a sweep with a run in each of the given states, each with its own job."""
    manifest = Manifest(folder, "slurm")
    for number, (state, _, cancelled) in enumerate(cases):
        manifest.runs[f"run{number}"] = Entry([], "", f"7_{number}", cancelled=cancelled)
        manifest.directory(f"run{number}").mark(state=state)
    return manifest


@pytest.mark.parametrize("accounting", [True, False])
def test_states_of_runs_on_slurm(tmp_path: Path, cluster: Cluster, accounting: bool) -> None:
    manifest = a_sweep(tmp_path / "sweep", ON_SLURM)
    words = [word for _, word, _ in ON_SLURM]
    cluster.set(jobs={f"7_{number}": word for number, word in enumerate(words) if word})
    if not accounting:
        cluster.without("sacct")
    runs = Observer().observe(manifest)
    shown = {case: (run.state, run.active) for case, run in zip(ON_SLURM, runs, strict=True)}
    ends = [] if accounting else [case for case in ON_SLURM if case[1] in ("OUT_OF_MEMORY", "CANCELLED")]
    assert shown == ON_SLURM | dict.fromkeys(ends, ("lost", False))
    assert len(cluster.calls("squeue")) == 1
    assert len(cluster.calls("sacct")) == accounting


def test_no_run_is_lost_while_squeue_does_not_answer(tmp_path: Path, cluster: Cluster) -> None:
    cases: Cases = {(state, GONE, False): (state, True) for state in ("pending", "running", "preempted")}
    manifest = a_sweep(tmp_path / "sweep", cases)
    cluster.set(down=True)
    runs = Observer().observe(manifest)
    assert [(run.state, run.active) for run in runs] == list(cases.values())
    assert {run.note for run in runs} == {"squeue does not answer"}
    assert cluster.calls("sacct") == []


def test_a_hundred_runs_take_one_call_of_squeue_and_sacct(tmp_path: Path, cluster: Cluster) -> None:
    cases: Cases = {("running", str(number), False): ("", True) for number in range(100)}
    manifest = a_sweep(tmp_path / "sweep", cases)
    cluster.set(jobs={f"7_{number}": "RUNNING" for number in range(99)})
    observer = Observer(ask_every=3600)
    for _ in range(2):
        states = [run.state for run in observer.observe(manifest)]
        assert states == ["running"] * 99 + ["lost"]
    assert [len(cluster.calls(command)) for command in ("squeue", "sacct")] == [1, 1]


def test_a_run_that_ends_during_squeue_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = a_sweep(tmp_path, {("running", GONE, False): ("", False)})

    def slow_queue() -> dict[str, str]:
        manifest.directory("run0").mark(state="finished")
        return {}

    monkeypatch.setattr(slurm, "queue", slow_queue)
    monkeypatch.setattr(slurm, "accounting", lambda jobs: {})
    assert [run.state for run in Observer().observe(manifest)] == ["finished"]


def test_squeue_is_called_again_for_a_new_job(tmp_path: Path, cluster: Cluster) -> None:
    manifest = a_sweep(tmp_path / "sweep", {("pending", GONE, False): ("", False)})
    observer = Observer(ask_every=3600)
    assert [run.state for run in observer.observe(manifest)] == ["lost"]
    manifest.runs["run0"].job = "8"  # the sweep was resumed
    cluster.set(jobs={"8": "PENDING"})
    assert [run.active for run in observer.observe(manifest)] == [True]


def test_a_run_that_started_after_the_last_squeue_is_not_preempted(tmp_path: Path, cluster: Cluster) -> None:
    manifest = a_sweep(tmp_path / "sweep", {("pending", "PENDING", False): ("", True)})
    cluster.set(jobs={"7_0": "PENDING"})
    observer = Observer(ask_every=3600)
    assert [run.state for run in observer.observe(manifest)] == ["pending"]
    manifest.directory("run0").mark(state="running", heartbeat=time.time())
    assert [run.state for run in observer.observe(manifest)] == ["running"]
    assert [run.state for run in Observer().observe(manifest)] == ["preempted"]


def test_a_sweep_that_has_ended_calls_no_command(tmp_path: Path, cluster: Cluster) -> None:
    cases: Cases = {(state, GONE, False): (state, False) for state in ("finished", "failed")}
    manifest = a_sweep(tmp_path / "sweep", cases)
    assert [run.state for run in Observer().observe(manifest)] == ["finished", "failed"]
    assert cluster.read()["calls"] == []


def test_a_run_that_was_never_submitted_is_lost(tmp_path: Path, cluster: Cluster) -> None:
    manifest = Manifest(tmp_path, "slurm", {}, {"a": Entry([], ""), "b": Entry([], "")})
    manifest.directory("a").mark(state="pending")
    assert [(run.state, run.active) for run in Observer().observe(manifest)] == [("lost", False)] * 2


def test_silent_seconds_count_from_the_last_heartbeat(tmp_path: Path, cluster: Cluster) -> None:
    cases: Cases = {("running", str(number), False): ("", True) for number in range(2)}
    manifest = a_sweep(tmp_path / "sweep", cases | {("finished", GONE, False): ("", False)})
    manifest.directory("run0").mark(heartbeat=time.time() - 600)
    manifest.directory("run2").mark(heartbeat=time.time() - 600)
    cluster.set(jobs={"7_0": "RUNNING", "7_1": "RUNNING"})
    silent, never, finished = (run.silent_seconds for run in Observer().observe(manifest))
    assert silent == pytest.approx(600, abs=60)
    assert (never, finished) == (None, None)


@contextmanager
def locked(*locks: Path) -> Iterator[None]:
    """Hold these locks within the context."""
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(FileLock(lock))
        yield


def test_states_of_local_runs(tmp_path: Path) -> None:
    # state in status.json, cancelled, held by a process: state and active, with a queue and without
    cases = {
        ("pending", False, False): [("pending", True), ("lost", False)],
        ("pending", True, False): [("cancelled", False), ("cancelled", False)],
        ("running", False, True): [("running", True), ("running", True)],
        ("running", True, True): [("running", True), ("running", True)],
        ("running", False, False): [("running", True), ("lost", False)],
        ("running", True, False): [("cancelled", False), ("cancelled", False)],
        ("preempted", False, False): [("preempted", False), ("preempted", False)],
        ("finished", True, False): [("finished", False), ("finished", False)],
    }
    manifest = Manifest(tmp_path, "local")
    for number, (state, cancelled, _) in enumerate(cases):
        manifest.runs[f"run{number}"] = Entry([], "", LOCAL, cancelled=cancelled)
        manifest.directory(f"run{number}").mark(state=state)
    held = [tmp_path / f"run{number}" / ".lock" for number, case in enumerate(cases) if case[2]]
    for with_queue, queue in ((0, [tmp_path / QUEUE_LOCK]), (1, [])):
        with locked(*held, *queue):
            runs = Observer().observe(manifest)
        shown = {case: (run.state, run.active) for case, run in zip(cases, runs, strict=True)}
        assert shown == {case: expected[with_queue] for case, expected in cases.items()}
