"""The loop of a search for a boundary: propose runs, have them trained, learn from their verdicts.

`boundary.json` in the sweep's folder has all runs, so the same command resumes its own search, and one over
wider intervals begins with the runs of the narrower one. Each run is an ordinary run of the sweep.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor
from torch.quasirandom import SobolEngine

from dino_exp import errors
from dino_exp.config.identity import identities
from dino_exp.config.search_space import Numbers, probes, typed
from dino_exp.config.sweep_runs import Run
from dino_exp.console import Console, a_console, table
from dino_exp.dino.verdict import WORDS
from dino_exp.errors import UserError
from dino_exp.metrics import INFORMATION
from dino_exp.runs import former_names
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training.attempt import Outcome
from launchers.boundary.boundary_axis import Axis
from launchers.boundary.boundary_file import FILE, Boundary, Tried, read_boundaries, write_boundaries
from launchers.boundary.boundary_lines import boundary_lines
from launchers.boundary.boundary_maps import maps_of
from launchers.boundary.classifier import Classifier
from launchers.boundary.proposal import first_points, next_points, to_repeat
from launchers.boundary.widening import widening
from launchers.one_search import alone

Compose = Callable[[Sequence[str]], Run]
"""Returns the checked run of some overrides, or raises `UserError`."""
Launch = Callable[[Sequence[Run], int], Sequence[Outcome]]
"""Trains runs, the first of which has that number; returns how they ended, in any order."""

SEED = "trainer.seed"
FIRST_PER_AXIS = 4
"""Runs, for each axis, that are spread over the space before any is chosen."""
ONE_OUTCOME = 0.5
"""Share of the runs after which a search that has seen one outcome only ends."""
SETTLED_BATCHES = 2
JUDGED_POINTS = 2048
VERDICT = re.compile("|".join(WORDS))


def find_boundary(
    settings: Mapping[str, Any],
    folder: Path,
    fixed: Sequence[str],
    spaces: Sequence[Numbers],
    compose: Compose,
    launch: Launch,
) -> None:
    """Find where training ends and collapse begins, as `hydra/sweeper=boundary` asks for.

    Raises:
        UserError: something must be fixed before the search can continue.
        SystemExit: there is no boundary, because all runs had one outcome or none had any.
        KeyboardInterrupt: the user stopped it.
    """
    console = a_console()
    Manifest.load_or_new(folder)  # refuses one of a newer version before anything is created
    configurations = [compose(words).cfg for words in probes(fixed, spaces)]
    problems: list[str] = []
    boundaries = read_boundaries(folder, problems)
    axes = [Axis.of(space) for space in spaces]
    for axis in axes:
        console.print(f"{axis.key}: from {axis.low:g} to {axis.high:g}, {SCALES[axis.scale]}.")
    names = search_names(configurations, axes)
    name = next((name for name in names if name in boundaries), names[0])
    with alone(folder):
        boundary = boundaries.setdefault(name, Boundary())
        if axes != boundary.axes:
            boundary.before = len(boundary.runs)
        boundary.axes, boundary.end = axes, ""

        def save() -> None:
            write_boundaries(folder, boundaries, problems)
            problems.clear()

        search = BoundarySearch(boundary, settings, folder, fixed, spaces, compose, launch, console, save)
        try:
            search.run()
        except KeyboardInterrupt:
            console.print("Stopped. The same command resumes the unfinished runs.")
            raise
        finally:
            save()
            console.print(summary(boundary, folder))
    if not boundary.lines:
        raise SystemExit(errors.FAILED)


SCALES = {"linear": "evenly", "log": "by its logarithm", "momentum": "by the logarithm of 1 − m"}


def search_names(configurations: Sequence[DictConfig], axes: Sequence[Axis]) -> list[str]:
    """Return the keys, and a hash of all that the runs share, under each of its ids.

    The intervals are no part of it, so that wider ones find the runs of narrower ones.
    """
    names, table = [], former_names.TABLE
    for each in zip(*(identities(cfg) for cfg in configurations), strict=False):
        shared = {key: value for key, value in each[0].items() if all(one.get(key) == value for one in each)}
        for axis in axes:
            shared.pop(table.first_key(axis.key), None)
        text = json.dumps(shared, sort_keys=True)
        keys = [axis.key.rpartition(".")[2] for axis in axes]
        names.append("-".join([*keys, hashlib.sha256(text.encode()).hexdigest()[:8]]))
    return names


@dataclass
class BoundarySearch:
    """The loop of one command."""

    boundary: Boundary
    settings: Mapping[str, Any]
    folder: Path
    fixed: Sequence[str]
    """The overrides that all runs share."""
    spaces: Sequence[Numbers]
    compose: Compose
    launch: Launch
    console: Console
    save: Callable[[], None]
    failed: list[Tried] = field(default_factory=list)
    """Runs that this command has tried without a verdict."""
    launched: int = 0

    def run(self) -> None:
        """Train runs until the boundary stands still or the runs are used up."""
        for tried in self.boundary.inside():
            if tried.trains is None:  # stopped or failed at an earlier time
                tried.problem = ""
        waiting = [tried for tried in self.boundary.inside() if tried.trains is None]
        self.learn()
        while not self.boundary.end:
            batch = waiting[: self.settings["n_jobs"]] or self.propose()
            waiting = waiting[len(batch) :]
            self.train(batch)
            self.learn()

    @property
    def known(self) -> list[Tried]:
        """The runs in the intervals that have a verdict."""
        return [tried for tried in self.boundary.inside() if tried.trains is not None]

    @property
    def remaining(self) -> int:
        """Runs that may still be made, out of `n_runs`."""
        return int(self.settings["n_runs"]) - len(self.known) - len(self.failed)

    @property
    def first(self) -> int:
        """Runs that are spread over the space before any is chosen."""
        return min(FIRST_PER_AXIS * len(self.boundary.axes), int(self.settings["n_runs"]))

    def points(self, runs: Sequence[Tried]) -> Tensor:
        """Return the positions (n, d) of runs."""
        rows = [[axis.position(run.values[axis.key]) for axis in self.boundary.axes] for run in runs]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(runs), len(self.boundary.axes))

    def classifier(self, runs: Sequence[Tried]) -> Classifier:
        """Return what these runs tell; those beyond the intervals, of a wider search, too."""
        return Classifier(self.points(runs), torch.tensor([bool(run.trains) for run in runs]))

    # ---- proposing ------------------------------------------------------------------------------

    def propose(self) -> list[Tried]:
        """Return the next runs, at most `n_jobs`, and add them to those of the search."""
        number = min(self.settings["n_jobs"], self.remaining)
        known, dimensions, seed = self.known, len(self.boundary.axes), self.settings["seed"]
        batch = 1 + max((run.batch for run in self.boundary.runs), default=-1)
        done = len(known) + len(self.failed)
        if done < self.first:
            number = min(number, self.first - done)
            points, repeats = first_points(dimensions, done + number, seed)[done:], []
        else:
            repeats = [self.repeated(known[index], batch) for index in self.surprising(number)]
            avoid = self.points(self.failed)
            points = next_points(
                self.classifier(known), number - len(repeats), seed + len(self.boundary.runs), avoid
            )
        found = [*repeats, *(Tried(self.values_at(point), batch) for point in points)]
        self.boundary.runs += found
        return found

    def values_at(self, point: Tensor) -> dict[str, float]:
        """Return the values at a position, as they will be typed."""
        return {
            axis.key: float(space.text(axis.value(float(position))))
            for axis, space, position in zip(self.boundary.axes, self.spaces, point, strict=True)
        }

    def surprising(self, number: int) -> list[int]:
        """Return which of the known runs to repeat with another seed, at most half of a batch."""
        known = self.known
        trains = torch.tensor([bool(run.trains) for run in known])
        return to_repeat(self.points(known), trains, (number + 1) // 2)

    def repeated(self, run: Tried, batch: int) -> Tried:
        """Return a run at the same place with the next seed."""
        seeds = [each.seed for each in self.boundary.runs if each.values == run.values]
        own = next((word for word in reversed(self.fixed) if word.startswith(f"{SEED}=")), f"{SEED}=0")
        return Tried(dict(run.values), batch, seed=int(own.partition("=")[2]) + len(seeds))

    # ---- training -------------------------------------------------------------------------------

    def train(self, batch: Sequence[Tried]) -> None:
        """Have a batch trained, and take down the verdicts."""
        runs: dict[str, Run] = {}
        for tried in batch:
            words = self.overrides_of(tried)
            shared = [word for word in self.fixed if tried.seed is None or not word.startswith(f"{SEED}=")]
            try:
                run = replace(self.compose([*shared, *words]), overrides=tuple(words))
            except UserError as error:  # values that do not go together
                tried.problem = str(error)
                self.failed.append(tried)
                continue
            tried.run = run.run_id
            runs[run.run_id] = run
        self.save()
        outcomes = self.launch(list(runs.values()), self.launched) if runs else []
        self.launched += len(runs)
        for tried in batch:
            if tried.run in runs:
                self.note(tried, outcomes)
            how = tried.verdict or tried.problem
            self.console.print(f"{' '.join(self.overrides_of(tried))}: {how}", soft_wrap=True)
        self.save()

    def overrides_of(self, tried: Tried) -> list[str]:
        """Return the values of a run as they are typed."""
        words = {space.key: space.text(tried.values[space.key]) for space in self.spaces}
        return typed(words | ({} if tried.seed is None else {SEED: str(tried.seed)}))

    def note(self, tried: Tried, outcomes: Sequence[Outcome]) -> None:
        """Take down how a run ended."""
        # beside an older run, its folder's name ends in a number
        names = (tried.run, f"{tried.run}-")
        outcome = next((each for each in outcomes if each.run_id == names[0]), None)
        outcome = outcome or next((each for each in outcomes if each.run_id.startswith(names[1])), None)
        if outcome is None:
            outcome = Outcome(tried.run, "lost", errors.FAILED, "the launcher returned no result")
        tried.verdict = verdict_of(outcome, self.folder)
        tried.trains = trains(tried.verdict)
        tried.information = outcome.metrics.get(INFORMATION.key)
        if tried.trains is None:
            why = (outcome.message.strip().splitlines() or [""])[-1]
            tried.problem = TOO_SHORT if tried.verdict else f"{outcome.state}: {why}"
            self.failed.append(tried)

    # ---- learning -------------------------------------------------------------------------------

    def learn(self) -> None:
        """Draw the boundary from what is known, and end the search if that is enough."""
        boundary, known = self.boundary, self.known
        boundary.lines, boundary.maps, boundary.next = [], [], []
        both = len({run.trains for run in known}) == 2
        here = [run for run in boundary.runs[boundary.before :] if run.trains is not None]
        if known and both:
            classifier = self.classifier(known)
            boundary.lines = boundary_lines(classifier, boundary.axes)
            boundary.maps = maps_of(classifier, boundary.axes)
            point = next_points(
                classifier, 1, self.settings["seed"] + len(boundary.runs), self.points(self.failed)
            )
            boundary.next = [self.values_at(each) for each in point]
        if not known and len(self.failed) >= self.settings["n_jobs"]:
            boundary.end = f"no run has a verdict; the last: {self.failed[-1].problem}"
        elif not both and len(here) >= max(self.first, ONE_OUTCOME * self.settings["n_runs"]):
            boundary.end = widening(boundary.axes, known)
        elif self.remaining <= 0:
            boundary.end = f"all {self.settings['n_runs']} runs are used up (hydra.sweeper.n_runs)"
            if not both:
                boundary.end = widening(boundary.axes, known) if known else "no run has a verdict"
        elif both and (moved := self.moved()):
            shares = ", ".join(f"{share:.1%}" for share in moved)
            self.console.print(f"The boundary moved over {moved[-1]:.1%} of the space.")
            if len(moved) == SETTLED_BATCHES and max(moved) < self.settings["tolerance"]:
                boundary.end = (
                    f"the boundary moved over {shares} of the space in the last batches, less than "
                    f"hydra.sweeper.tolerance = {self.settings['tolerance']:g}"
                )
        self.save()

    def moved(self) -> list[float]:
        """Return the share of the space that changed sides in each of the last batches of chosen runs."""
        known = self.known
        ends = [
            number
            for number, run in enumerate(known)
            if number >= self.first and run.batch != known[number - 1].batch
        ]
        ends = [*ends, len(known)][-SETTLED_BATCHES - 1 :]
        where = SobolEngine(len(self.boundary.axes)).draw(JUDGED_POINTS, dtype=torch.float64)
        sides = [self.classifier(known[:end]).at(where).side > 0.5 for end in ends]
        return [float((a != b).double().mean()) for a, b in pairwise(sides)]


TOO_SHORT = "warming-up: too short for a verdict; give trainer.epochs more"


def verdict_of(outcome: Outcome, folder: Path) -> str:
    """Return the verdict with which a run ended; empty for one that failed otherwise."""
    summary = RunDirectory(outcome.directory or folder / outcome.run_id).read_summary()
    if outcome.state in ("finished", "collapsed"):
        said = VERDICT.search(outcome.message)
        return str(summary.get("verdict") or (said[0] if said else ""))
    diverged = summary.get("state") == "failed" and summary.get("verdict") == "diverged"
    return "diverged" if outcome.state == "failed" and diverged else ""


def trains(verdict: str) -> bool | None:
    """Return whether a run with this verdict trains; None for no verdict.

    A slow run counts as training: its outputs still depend on the image.
    """
    if verdict in ("healthy", "slow"):
        return True
    return False if verdict == "diverged" or verdict.startswith("collapsed") else None


def summary(boundary: Boundary, folder: Path) -> Table:
    """Return the table that ends a search."""
    known = [run for run in boundary.inside() if run.trains is not None]
    train = sum(bool(run.trains) for run in known)
    failed = sum(bool(run.problem) for run in boundary.inside())
    rows = {
        "runs": f"{len(known)}: {train} train, {len(known) - train} do not"
        + f"; {failed} failed" * bool(failed)
    }
    if boundary.lines:
        rows["boundary"] = "\n".join(boundary.lines)
        rows["in parentheses"] = (
            "where the boundary is with a probability of 90 %, by these runs and their seeds"
        )
    rows["ended"] = boundary.end or "not yet"
    if boundary.next:
        rows["next run"] = " ".join(f"{key}={value:g}" for key, value in boundary.next[0].items())
    rows["stored in"] = str(folder / FILE)
    return table(f"Boundary {folder}", rows)
