"""The local queue: the order of runs, their shares of the machine, failures, cancelling and stopping."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

import pytest

from dino_exp.runs.run_directory import is_locked
from launchers.__main__ import main as launchers
from launchers.local import QUEUE_LOCK, QUEUE_LOG, Slot, slots
from launchers.states import Observer
from tests.launchers.doubles import (
    LOCALLY,
    SWEEP,
    Played,
    dino,
    directory,
    resume,
    submit,
    the_sweep,
    wait_until,
)


def do(seed: int, text: str) -> None:
    """Write the `do` file of a run; see `fake_python.py`."""
    directory(seed).path.mkdir(parents=True, exist_ok=True)
    (directory(seed).path / "do").write_text(text)


def wait_for(seeds: Iterable[int], state: str) -> None:
    """Wait until all these runs have a state."""
    wait_until(lambda: all(directory(seed).read_status().get("state") == state for seed in seeds))


def wait_for_the_queue() -> None:
    """Wait until the queue has ended."""
    wait_until(lambda: "exit code" in log() and not is_locked(SWEEP / QUEUE_LOCK))


def log() -> str:
    """Return the log of the queue."""
    return (SWEEP / QUEUE_LOG).read_text()


def signal_queue(number: signal.Signals) -> None:
    """Send a signal to the queue."""
    (process,) = re.findall(r"queue: process (\d+)", log())
    os.kill(int(process), number)


def states() -> list[str]:
    """Return the states that `python -m launchers status` shows."""
    return [run.state for run in Observer().observe(the_sweep())]


def order() -> list[str]:
    """Return the names of the runs in the order of their starts."""
    return (SWEEP / "order.txt").read_text().split()


def test_runs_start_in_the_order_of_the_sweep(played: Played) -> None:
    submission = submit([2, 0, 1], "runs_at_once=1", launcher="local")
    wait_for([0, 1, 2], "finished")
    assert order() == submission.submitted
    assert {entry.job for entry in the_sweep().runs.values()} == {"local"}


def test_two_runs_at_once_have_separate_cores_and_the_third_waits(played: Played) -> None:
    for seed in range(3):
        do(seed, "gate go")
    submit(range(3), "runs_at_once=2", launcher="local")
    wait_for([0, 1], "running")
    seen = [directory(seed).path / "seen.json" for seed in (0, 1)]
    wait_until(lambda: all(path.exists() and path.stat().st_size for path in seen))
    found = [json.loads(path.read_text()) for path in seen]
    assert [each["DINO_EXP_SHARED_BATCHES"] for each in found] == ["/dev/shm"] * 2
    pids = [each["pid"] for each in found]
    # a single core is shared by both; `test_slots_divide_gpus_and_cores` checks that larger groups differ
    own = [slot.cores for slot in slots({"runs_at_once": 2, "runs_per_gpu": 1})]
    wait_until(lambda: [os.sched_getaffinity(pid) for pid in pids] == own)
    assert states() == ["running", "running", "pending"]
    (SWEEP / "go").touch()
    wait_for([0, 1, 2], "finished")
    assert len(order()) == 3


def test_a_failed_run_does_not_stop_the_others_and_is_tried_again(played: Played) -> None:
    do(0, "fail")
    do(1, "kill")
    do(2, "exit 1")
    submit(range(4), "runs_at_once=1", launcher="local")
    wait_for_the_queue()
    assert states() == ["failed", "failed", "failed", "finished"]
    assert [directory(seed).traceback_file.exists() for seed in range(4)] == [True, True, True, False]
    for seed in range(3):
        do(seed, "finish")
    assert resume() == 0
    wait_for(range(3), "finished")
    assert [entry.retries for entry in the_sweep().runs.values()] == [1, 1, 1, 0]
    assert len(order()) == 6  # one of the seven attempts exited before it started its run


def test_cancel_stops_running_and_waiting_runs(played: Played) -> None:
    do(0, "wait")
    submit([0, 1, 2], "runs_at_once=1", launcher="local")
    wait_for([0], "running")
    assert launchers(["cancel", str(SWEEP), "seed=1"]) == 0
    assert states() == ["running", "cancelled", "pending"]
    assert launchers(["cancel", str(SWEEP), "seed=0"]) == 0
    wait_for([0], "cancelled")
    wait_for([2], "finished")
    assert states() == ["cancelled", "cancelled", "finished"]
    do(0, "finish")
    assert resume() == 0
    wait_for([0, 1], "finished")
    assert len(order()) == 4


def test_a_running_queue_trains_runs_that_are_added(played: Played) -> None:
    do(0, "gate go")
    submit([0], "runs_at_once=2", launcher="local")
    wait_for([0], "running")
    assert submit([0, 1], "runs_at_once=2", launcher="local").submitted == [directory(1).path.name]
    wait_for([1], "finished")  # by the queue that already runs
    assert states() == ["running", "finished"]
    assert log().count("queue: process") == 1
    (SWEEP / "go").touch()
    wait_for([0], "finished")


def test_stopping_the_queue_makes_its_runs_save(played: Played) -> None:
    do(0, "wait")
    do(1, "deaf")
    submit([0, 1, 2], "runs_at_once=2", launcher="local")
    wait_for([0, 1], "running")
    signal_queue(signal.SIGTERM)
    wait_for_the_queue()
    assert states() == ["preempted", "preempted", "lost"]
    for seed in (0, 1):
        do(seed, "finish")
    assert resume() == 0
    wait_for([0, 1, 2], "finished")


def test_a_run_survives_the_kill_of_its_queue(played: Played) -> None:
    do(0, "gate go")
    submit([0, 1], "runs_at_once=1", launcher="local")
    wait_for([0], "running")
    signal_queue(signal.SIGKILL)
    wait_until(lambda: not is_locked(SWEEP / QUEUE_LOCK))
    assert states() == ["running", "lost"]
    assert submit([0, 1], "runs_at_once=1", launcher="local").submitted == [directory(1).path.name]
    wait_for([1], "finished")
    (SWEEP / "go").touch()
    wait_for([0], "finished")
    assert len(order()) == 2


@pytest.mark.parametrize(("first", "code"), [("finish", 0), ("fail", 1)])
def test_train_py_waits_for_the_runs_and_prints_their_states(
    played: Played, capsys: pytest.CaptureFixture[str], first: str, code: int
) -> None:
    do(0, first)
    assert dino(*LOCALLY, "trainer.seed=0,1", "hydra.launcher.runs_at_once=1") == code
    state = {"finish": "finished", "fail": "failed"}[first]
    assert states() == [state, "finished"]
    shown = capsys.readouterr().out
    assert f"trainer.seed=0: {state}\n" in shown
    assert "trainer.seed=1: finished\n" in shown
    assert ("ValueError: a loss of NaN" in shown) == (first == "fail")


def cores(slot: Slot) -> list[int]:
    return sorted(slot.cores)


def slots_of(
    monkeypatch: pytest.MonkeyPatch, gpus: str, count: int, at_once: int | None, per_gpu: int = 1
) -> list[Slot]:
    """Return the slots of a machine with these GPUs and this number of cores."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)), raising=False)
    return slots({"runs_at_once": at_once, "runs_per_gpu": per_gpu})


def test_slots_divide_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    four = slots_of(monkeypatch, "GPU-a,GPU-b", 8, None, per_gpu=2)
    assert [(slot.gpu, slot.share) for slot in four] == [(gpu, 2) for gpu in ("GPU-a", "GPU-b") * 2]
    assert [cores(slot) for slot in four] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    three = slots_of(monkeypatch, "0,1", 8, 3)
    assert [(slot.gpu, slot.share, len(slot.cores)) for slot in three] == [(gpu, 2, 2) for gpu in "010"]
    without = slots_of(monkeypatch, "-1", 3, None)
    assert [(slot.gpu, slot.share, cores(slot)) for slot in without] == [(None, 1, [n]) for n in range(3)]
    crowded = slots_of(monkeypatch, "", 2, 4)
    assert [cores(slot) for slot in crowded] == [[0], [1], [0], [1]]


def test_slots_with_the_same_cores_are_still_different(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(slots_of(monkeypatch, "", 1, 3))) == 3
    assert len(set(slots_of(monkeypatch, "0", 1, None, per_gpu=3))) == 3


def test_invalid_local_settings_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dino(*LOCALLY, "trainer.seed=0,1", "hydra.launcher.runs_at_once=0") == 2
    assert "hydra.launcher.runs_at_once = 0" in capsys.readouterr().err
    assert dino(*LOCALLY[1:]) == 2
    assert "works with -m, also for one run" in capsys.readouterr().err
    assert list(here.iterdir()) == []
