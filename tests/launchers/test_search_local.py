"""A search over this machine's queue: killed with all its processes and gone on with, and its pruned runs."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

from optuna.trial import TrialState

from dino_exp.config.compose import compose_run
from dino_exp.console import a_console
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training.attempt import Outcome
from launchers.__main__ import main as launchers
from launchers.local import QUEUE_LOG
from launchers.search_runs import Beside
from tests.launchers.doubles import Played, wait_until
from tests.launchers.searches import SEARCH, trials
from tests.programs import Program, until

SETTINGS = {"runs_per_gpu": 1, "max_retries": 2, "detach": False, "dry_run": False, "runs_at_once": 2}
LOCALLY = [*SEARCH, "hydra/launcher=local", "hydra.launcher.runs_at_once=2", "name=search"]
SMALL = ["trainer.batch_size=8", "crops.local_number=1", "trainer.epochs=2", "trainer.device=cpu"]


def steps(run: RunDirectory) -> list[int]:
    return [line["step"] for line in read_metrics(run.metrics_file)]


def kill_all(folder: Path, search: Program) -> list[str]:
    """Kill a search, its queue and its trainings, as a power failure does; return the killed runs."""
    search.kill()
    (queue,) = re.findall(r"queue: process (\d+)", (folder / QUEUE_LOG).read_text())
    os.kill(int(queue), signal.SIGKILL)
    killed = []
    for name in Manifest.load(folder).runs:
        status = RunDirectory(folder / name).read_status()
        if status["state"] == "running":
            with suppress(ProcessLookupError):
                os.kill(int(status["pid"]), signal.SIGKILL)
                killed.append(name)
    return killed


def test_a_search_is_killed_and_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "search"
    command = ["train.py", *LOCALLY, *SMALL, "loss.teacher_temp=interval(0.02,0.06)"]
    command += ["hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=2", "hydra.sweeper.pruner=median"]
    search = Program(*command, folder=tmp_path)

    def in_the_middle() -> bool:
        runs = list(Manifest.load(folder).runs) if Manifest.path(folder).exists() else []
        taken = [steps(RunDirectory(folder / name)) for name in runs]
        return search.returncode is not None or sum(len(each) > 8 for each in taken) > 1

    until(in_the_middle, "two runs are in the middle")
    killed = kill_all(folder, search)
    assert killed, search.output
    again = Program(*command, folder=tmp_path)
    assert again.wait() == 0, again.output
    complete = [trial for trial in trials(folder) if trial.state == TrialState.COMPLETE]
    names = [trial.user_attrs["run"] for trial in complete]
    assert len(names) == len(set(names)) == 3
    assert set(killed) <= set(names)
    for name in names:
        run = RunDirectory(folder / name)
        assert steps(run) == [0, *range(1, 65)]
        assert len(run.read_status()["attempts"]) == 1 + (name in killed)
    # k-NN after the first of two epochs
    assert [list(trial.intermediate_values) for trial in complete] == [[1]] * 3


def test_a_pruned_run_stops_in_order_stays_so_and_can_be_resumed(played: Played) -> None:
    both = [compose_run(["experiment=debug", f"trainer.seed={seed}"]) for seed in (1, 2)]
    first, second = (run.run_id for run in both)
    for name in (first, second):
        directory = played.run(name, "wait")
        directory.append_metrics({"step": 1, "knn_top1": 5.0})
        directory.append_metrics({"step": 4, "knn_top1": 20.0})
    with Beside("local", SETTINGS, played.folder, "knn_top1", a_console()) as training:
        training.start(both)
        assert training.interim(first) == []  # the number of its steps is not known yet
        wait_until(lambda: all((played.folder / name / "seen.json").exists() for name in (first, second)))
        assert training.interim(first) == [5.0, 20.0]
        training.prune([first])
        outcomes: list[Outcome] = []
        while not outcomes:
            outcomes = training.ended()
        assert [(each.run_id, each.state) for each in outcomes] == [(first, "pruned")]
        assert list(training.running) == [second]
        training.prune([second])
        while training.running:
            training.ended()
    status = RunDirectory(played.folder / first).read_status()
    assert (status["state"], Manifest.load(played.folder).runs[first].pruned) == ("cancelled", True)
    assert launchers(["status", str(played.folder)]) == 0
    assert launchers(["resume", str(played.folder)]) == 0
    assert RunDirectory(played.folder / first).read_status()["state"] == "cancelled"
    (played.folder / first / "do").write_text("finish")
    with Beside("local", SETTINGS, played.folder, "knn_top1", a_console()) as training:
        training.start(both[:1])  # the search asks for it again
        while training.running:
            outcomes = training.ended()
    assert outcomes[0].state == "finished"
