"""A search with a fake launcher, and what it has recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from dino_exp.training.attempt import Outcome
from launchers.search import JOURNAL, search

TEMPERATURE = "loss.teacher_temp=tag(log,interval(0.01,0.09))"
MOMENTUM = "loss.center_momentum=choice(0,0.9,0.99)"
FIXED = ["experiment=debug", "trainer.epochs=3"]
SEARCH = ["-m", "hydra/sweeper=optuna", "experiment=debug"]


class FakeLauncher:
    """Trains nothing, and returns the outcomes in reverse order, since launchers may change the order.

    Args:
        train: state, message and value of a job, from its overrides.
        objective: the metric that has the value.
    """

    def __init__(
        self, train: Callable[[dict[str, str]], tuple[str, str, float | None]], objective: str = "knn_top1"
    ) -> None:
        self.train, self.objective = train, objective
        self.batches: list[list[list[str]]] = []
        self.first_jobs: list[int] = []

    @property
    def jobs(self) -> list[list[str]]:
        return [job for batch in self.batches for job in batch]

    def __call__(self, runs: Sequence[Run], first: int) -> list[Outcome]:
        self.batches.append([list(run.job) for run in runs])
        self.first_jobs.append(first)
        outcomes = []
        for run in runs:
            state, message, knn = self.train(dict(word.split("=", 1) for word in run.job))
            metrics = {} if knn is None else {self.objective: knn}
            outcomes.append(Outcome(run.run_id, state, 0, message, metrics))
        return outcomes[::-1]


def well(values: dict[str, str]) -> tuple[str, str, float | None]:
    """Return a healthy result that is better the higher the temperature is."""
    return "finished", "healthy", 1000 * float(values.get("loss.teacher_temp", 0))


def run_search(folder: Path, launcher: FakeLauncher, overrides: Sequence[str], **changes: Any) -> None:
    """Search over the spaces in the overrides, one trial at a time unless `changes` say otherwise."""
    settings: dict[str, Any] = dict(n_trials=12, n_jobs=1, sampler="random", seed=0, objective="knn_top1")
    fixed, spaces = divide([loader(None).parse(text) for text in overrides])
    search(settings | changes, folder, fixed, spaces, compose_run, launcher)


def studies(folder: Path) -> list[optuna.Study]:
    """Return the studies that a journal has recorded."""
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


def trials(folder: Path) -> list[FrozenTrial]:
    """Return the trials of the only study."""
    (study,) = studies(folder)
    return study.trials
