"""This machine's queue: who comes when, with what, and what becomes of the rest when one fails."""

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
from launchers.local import QUEUE_LOCK, QUEUE_LOG, Place, places
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
    """Have a run of the sweep do something; see `fake_python.py`."""
    directory(seed).path.mkdir(parents=True, exist_ok=True)
    (directory(seed).path / "do").write_text(text)


def wait_for(seeds: Iterable[int], state: str) -> None:
    """Until the runs have come that far."""
    wait_until(lambda: all(directory(seed).read_status().get("state") == state for seed in seeds))


def wait_for_the_queue() -> None:
    """Until it has done its work."""
    wait_until(lambda: "exit code" in log() and not is_locked(SWEEP / QUEUE_LOCK))


def log() -> str:
    """What the queue says."""
    return (SWEEP / QUEUE_LOG).read_text()


def states() -> list[str]:
    """As `python -m launchers status` shows them."""
    return [run.state for run in Observer().observe(the_sweep())]


def order() -> list[str]:
    """Names of the runs as they began."""
    return (SWEEP / "order.txt").read_text().split()


def test_runs_begin_in_their_order(played: Played) -> None:
    submission = submit([2, 0, 1], "runs_at_once=1", launcher="local")
    wait_for([0, 1, 2], "finished")
    assert order() == submission.submitted
    assert {entry.job for entry in the_sweep().runs.values()} == {"local"}


def test_two_at_once_have_cores_of_their_own_and_the_third_waits(played: Played) -> None:
    for seed in range(3):
        do(seed, "gate go")
    submit(range(3), "runs_at_once=2", launcher="local")
    wait_for([0, 1], "running")
    seen = [directory(seed).path / "seen.json" for seed in (0, 1)]
    wait_until(lambda: all(path.exists() and path.stat().st_size for path in seen))
    pids = [json.loads(path.read_text())["pid"] for path in seen]
    # with a single core both have it; `test_the_machine_is_shared_out` tells that groups of several differ
    own = [place.cores for place in places({"runs_at_once": 2, "runs_per_gpu": 1})]
    wait_until(lambda: [os.sched_getaffinity(pid) for pid in pids] == own)
    assert states() == ["running", "running", "pending"]
    (SWEEP / "go").touch()
    wait_for([0, 1, 2], "finished")
    assert len(order()) == 3


def test_one_that_fails_leaves_the_others_alone_and_is_tried_again(played: Played) -> None:
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
    assert len(order()) == 6  # one of seven attempts left before it began


def test_cancelling_stops_what_runs_and_what_waits(played: Played) -> None:
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


def test_a_run_is_added_while_the_queue_works(played: Played) -> None:
    do(0, "gate go")
    submit([0], "runs_at_once=2", launcher="local")
    wait_for([0], "running")
    assert submit([0, 1], "runs_at_once=2", launcher="local").submitted == [directory(1).path.name]
    wait_for([1], "finished")  # by the queue that there is
    assert states() == ["running", "finished"]
    assert log().count("queue: process") == 1
    (SWEEP / "go").touch()
    wait_for([0], "finished")


def test_a_queue_that_is_stopped_has_its_runs_save(played: Played) -> None:
    do(0, "wait")
    do(1, "deaf")
    submit([0, 1, 2], "runs_at_once=2", launcher="local")
    wait_for([0, 1], "running")
    queue = re.search(r"queue: process (\d+)", log())
    assert queue
    os.kill(int(queue[1]), signal.SIGTERM)
    wait_for_the_queue()
    assert states() == ["preempted", "preempted", "lost"]
    for seed in (0, 1):
        do(seed, "finish")
    assert resume() == 0
    wait_for([0, 1, 2], "finished")


def test_a_queue_that_is_killed_leaves_its_run_to_itself(played: Played) -> None:
    do(0, "gate go")
    submit([0, 1], "runs_at_once=1", launcher="local")
    wait_for([0], "running")
    queue = re.search(r"queue: process (\d+)", log())
    assert queue
    os.kill(int(queue[1]), signal.SIGKILL)
    wait_until(lambda: not is_locked(SWEEP / QUEUE_LOCK))
    assert states() == ["running", "lost"]
    assert submit([0, 1], "runs_at_once=1", launcher="local").submitted == [directory(1).path.name]
    wait_for([1], "finished")
    (SWEEP / "go").touch()
    wait_for([0], "finished")
    assert len(order()) == 2


@pytest.mark.parametrize(("first", "code"), [("finish", 0), ("fail", 1)])
def test_the_command_line_waits_and_says_how_it_went(
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


def cores(place: Place) -> list[int]:
    return sorted(place.cores)


def shared_out(
    monkeypatch: pytest.MonkeyPatch, gpus: str, count: int, at_once: int | None, per_gpu: int = 1
) -> list[Place]:
    """A machine with these GPUs and so many cores."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)), raising=False)
    return places({"runs_at_once": at_once, "runs_per_gpu": per_gpu})


def test_the_machine_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    four = shared_out(monkeypatch, "GPU-a,GPU-b", 8, None, per_gpu=2)
    assert [(place.gpu, place.share) for place in four] == [(gpu, 2) for gpu in ("GPU-a", "GPU-b") * 2]
    assert [cores(place) for place in four] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    three = shared_out(monkeypatch, "0,1", 8, 3)
    assert [(place.gpu, place.share, len(place.cores)) for place in three] == [
        ("0", 2, 2),
        ("1", 2, 2),
        ("0", 2, 2),
    ]
    without = shared_out(monkeypatch, "-1", 3, None)
    assert [(place.gpu, place.share, cores(place)) for place in without] == [(None, 1, [n]) for n in range(3)]
    crowded = shared_out(monkeypatch, "", 2, 4)
    assert [cores(place) for place in crowded] == [[0], [1], [0], [1]]


def test_the_places_differ_even_where_the_cores_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(shared_out(monkeypatch, "", 1, 3))) == 3
    assert len(set(shared_out(monkeypatch, "0", 1, None, per_gpu=3))) == 3


def test_a_local_sweep_that_cannot_be_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dino(*LOCALLY, "trainer.seed=0,1", "hydra.launcher.runs_at_once=0") == 2
    assert "hydra.launcher.runs_at_once = 0" in capsys.readouterr().err
    assert dino(*LOCALLY[1:]) == 2
    assert "works with -m, also for one run" in capsys.readouterr().err
    assert list(here.iterdir()) == []
