"""A search whose runs are not trained, and what it has recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from dino_exp.config.compose import compose_run
from dino_exp.config.hydra_loader import loader
from dino_exp.config.search_space import divide
from dino_exp.config.sweep_runs import Run
from dino_exp.console import a_console
from dino_exp.training.attempt import Outcome
from launchers.search import JOURNAL, search
from launchers.search_runs import Training

TEMPERATURE = "loss.teacher_temp=tag(log,interval(0.01,0.09))"
MOMENTUM = "loss.center_momentum=choice(0,0.9,0.99)"
FIXED = ["experiment=debug", "trainer.epochs=3"]
SEARCH = ["-m", "hydra/sweeper=optuna", "experiment=debug"]


Ends = Callable[[dict[str, str]], tuple[str, str, float | None]]


class FakeTraining:
    """Trains nothing: of the runs that have had all their interim values, the one that began last ends first.

    Args:
        train: state, message and value of a run at its end, from its overrides.
        objective: the metric that has the value.
        curve: its interim values; one comes with each call of `ended`.
    """

    def __init__(
        self,
        train: Ends,
        objective: str = "knn_top1",
        curve: Callable[[dict[str, str]], list[float]] = lambda values: [],
    ) -> None:
        self.train, self.objective, self.curve = train, objective, curve
        self.starts: list[list[list[str]]] = []
        self.running: dict[str, dict[str, str]] = {}
        self.seen: dict[str, list[float]] = {}
        self.stopped: dict[str, dict[str, str]] = {}
        self.most = 0
        """Runs at one time."""

    @property
    def jobs(self) -> list[list[str]]:
        return [job for jobs in self.starts for job in jobs]

    def start(self, runs: Sequence[Run]) -> None:
        self.starts.append([list(run.job) for run in runs])
        for run in runs:
            assert run.run_id not in self.seen, f"{run.run_id} is trained twice"
            self.running[run.run_id] = dict(word.split("=", 1) for word in run.job)
            self.seen[run.run_id] = []
        self.most = max(self.most, len(self.running))

    def ended(self) -> list[Outcome]:
        over = []
        for run_id, values in self.running.items():
            curve, seen = self.curve(values), self.seen[run_id]
            if run_id in self.stopped or len(seen) == len(curve):
                over.append(run_id)
            else:
                seen.append(curve[len(seen)])
        return [self._outcome(run_id) for run_id in over[-1:]]

    def _outcome(self, run_id: str) -> Outcome:
        values = self.running[run_id]
        state, message, knn = ("pruned", "", None) if run_id in self.stopped else self.train(values)
        del self.running[run_id]
        return Outcome(run_id, state, 0, message, {} if knn is None else {self.objective: knn})

    def interim(self, run_id: str) -> list[float]:
        return self.seen[run_id]

    def prune(self, run_ids: Collection[str]) -> None:
        self.stopped |= {run_id: self.running[run_id] for run_id in run_ids}


def well(values: dict[str, str]) -> tuple[str, str, float | None]:
    """Return a healthy result that is better the higher the temperature is."""
    return "finished", "healthy", 1000 * float(values.get("loss.teacher_temp", 0))


def run_search(folder: Path, training: Training, overrides: Sequence[str], **changes: Any) -> None:
    """Search over the spaces in the overrides, one trial at a time unless `changes` say otherwise."""
    settings: dict[str, Any] = dict(n_trials=12, n_jobs=1, sampler="random", pruner="none", seeds=1)
    settings |= dict(seed=0, objective="knn_top1") | changes
    fixed, spaces = divide([loader(None).parse(text) for text in overrides])
    search(settings, folder, fixed, spaces, compose_run, training, a_console())


def studies(folder: Path) -> list[optuna.Study]:
    """Return the studies that a journal has recorded."""
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def trials(folder: Path) -> list[FrozenTrial]:
    """Return the trials of the only study."""
    (study,) = studies(folder)
    return study.trials
