"""A launcher that trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dino_exp.config.sweep_runs import Run
from dino_exp.training.attempt import Outcome


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
