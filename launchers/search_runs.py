"""How the runs of a search are trained: beside one another by our launchers, in batches by all others."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from dino_exp import errors
from dino_exp.config.plugins import NAMED
from dino_exp.config.sweep_runs import Run
from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training.attempt import Outcome
from launchers import watch
from launchers.approval import remember
from launchers.interim import Interim
from launchers.launch import announce, outcome
from launchers.stopping import stop
from launchers.submission import submit, wanted

PRUNED = "pruned"
"""State of a run that a search has stopped."""


class Training(Protocol):
    """What a search needs of a launcher; runs are named by their ids."""

    def start(self, runs: Sequence[Run]) -> None:
        """Have runs trained, beside those that are training."""

    def ended(self) -> list[Outcome]:
        """Return how runs have ended since the last call; wait a moment, or until one has."""

    def interim(self, run_id: str) -> list[float]:
        """Return the values of the objective that a run has had before its end; they only become more."""

    def prune(self, run_ids: Collection[str]) -> None:
        """Have runs save and stop; they end as `PRUNED`, unless they have just ended."""


class Beside:
    """Training by one of our launchers, which takes runs at any time; in its context the sweep is shown."""

    def __init__(
        self, launcher: str, settings: Mapping[str, Any], folder: Path, objective: str, console: Console
    ) -> None:
        self.launcher, self.settings, self.folder = launcher, settings, folder
        self.objective, self.console = objective, console
        self.watch = watch.Watch(folder, console)
        self.running: dict[str, str] = {}
        """Names of directories by run id; beside an older run, a name ends in a number."""
        self.values: dict[str, Interim] = {}

    def __enter__(self) -> Beside:
        self.watch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.watch.__exit__(kind, *error)
        if self.running and kind is not None and issubclass(kind, KeyboardInterrupt):
            self.console.print(watch.how_to_come_back(self.folder))

    def start(self, runs: Sequence[Run]) -> None:
        """Submit runs.

        Raises:
            UserError: they cannot be submitted.
        """
        remember(self.settings, NAMED)
        asked = wanted(runs, self.folder)
        submission = submit(self.folder, self.launcher, self.settings, asked)
        if self.launcher == "slurm":
            announce(self.console, submission)
        for run, each in zip(runs, asked, strict=True):
            self.running[run.run_id] = each.name
            self.values[run.run_id] = Interim(RunDirectory(self.folder / each.name), self.objective)

    def ended(self) -> list[Outcome]:
        """Look at the runs, and return how those ended that are not active any more."""
        states = {state.name: state for state in self.watch.look(self.running.values())}
        found = []
        for run_id, name in list(self.running.items()):
            if name not in states:
                found.append(Outcome(run_id, "lost", errors.FAILED, "not in manifest.json any more"))
            elif not states[name].active:
                found.append(replace(outcome(self.watch.manifest, states[name]), run_id=run_id))
        for each in found:
            del self.running[each.run_id]
        if not found:
            time.sleep(watch.POLL_SECONDS)
        return found

    def interim(self, run_id: str) -> list[float]:
        """Return the values in the run's metrics.jsonl."""
        return self.values[run_id].read()

    def prune(self, run_ids: Collection[str]) -> None:
        """Stop the runs, as a cancellation does; where SLURM does not answer, they go on."""
        names = [self.running[each] for each in run_ids if each in self.running]
        try:
            stop(self.folder, names, pruned=True)
        except UserError as error:
            self.console.print(f"Not pruned, {', '.join(names)}: {error}", soft_wrap=True)


class InBatches:
    """Training by a launcher of Hydra's, whose call returns when all its runs have ended.

    Args:
        train: trains runs, the first of which has that number; returns how they ended, in any order.
    """

    def __init__(self, train: Callable[[Sequence[Run], int], Sequence[Outcome]]) -> None:
        self.train = train
        self.waiting: list[Run] = []
        self.launched = 0

    def start(self, runs: Sequence[Run]) -> None:
        """Add runs to the next batch."""
        self.waiting += runs

    def ended(self) -> list[Outcome]:
        """Train the batch."""
        batch, self.waiting = self.waiting, []
        outcomes = self.train(batch, self.launched)
        self.launched += len(batch)
        return [replace(_outcome_of(run.run_id, outcomes), run_id=run.run_id) for run in batch]

    def interim(self, run_id: str) -> list[float]:
        """Return nothing: nobody looks while a batch is trained."""
        return []

    def prune(self, run_ids: Collection[str]) -> None:
        """Do nothing: all runs of the batch have ended."""


def _outcome_of(name: str, outcomes: Sequence[Outcome]) -> Outcome:
    """Return how a run ended; beside an older run, its folder's name ends in a number."""
    for each in outcomes:
        if each.run_id == name or each.run_id.startswith(f"{name}-"):
            return each
    return Outcome(name, "lost", errors.FAILED, "the launcher returned no result")
