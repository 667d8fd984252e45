"""A search by Optuna: ask for trials, have them trained, and tell Optuna how they ended.

The studies are in `optuna.journal` in the sweep's folder, one for each configuration and space, so the same
command resumes its own study. Each trial's run is an ordinary run of the sweep.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.table import Table

from dino_exp import errors
from dino_exp.config import data_content
from dino_exp.config.identity import identities
from dino_exp.config.launcher_settings import without_labels
from dino_exp.config.search_space import Choices, Space, probes, typed
from dino_exp.config.sweep_runs import Run
from dino_exp.console import Console, a_console, table
from dino_exp.errors import UserError
from dino_exp.metrics import KNN, Metric, evaluation_of, objective
from dino_exp.regular_file import read_regular
from dino_exp.runs import former_names
from dino_exp.runs.manifest import Manifest
from dino_exp.training.attempt import Outcome
from launchers.one_search import alone
from launchers.search_journal import mend

JOURNAL = "optuna.journal"
RETRY_OF, REFUSED, RUN, OVERRIDES = "retry_of", "refused", "run", "overrides"
"""Attributes that are stored with a trial."""


Compose = Callable[[Sequence[str]], Run]
"""Returns the checked run of some overrides, or raises `UserError`."""
Launch = Callable[[Sequence[Run], int], Sequence[Outcome]]
"""Trains runs, the first of which has that number; returns how they ended, in any order."""


def search(
    settings: Mapping[str, Any],
    folder: Path,
    fixed: Sequence[str],
    spaces: Sequence[Space],
    compose: Compose,
    launch: Launch,
) -> None:
    """Search for the best of a metric, as `hydra/sweeper=optuna` asks for; trials differ in `spaces`.

    Raises:
        UserError: something must be fixed before the search can continue.
        SystemExit: no trial is complete.
        KeyboardInterrupt: the user stopped it.
    """
    console, goal = a_console(), settings["objective"]

    def labeled(words: Sequence[str]) -> Run:
        run = compose(words)
        if evaluation_of(goal) and data_content.lack_labels(run.cfg):
            raise UserError(f"data.root = {run.cfg.data.root}: {without_labels(goal)}")
        return run

    Manifest.load_or_new(folder)  # refuses one of a newer version before anything is created
    first = labeled(probes(fixed, spaces)[0]).cfg
    with alone(folder):
        spaces = [in_first_names(space) for space in spaces]
        study = open_study(folder / JOURNAL, known_study(folder / JOURNAL, first, spaces, goal), settings)
        say_other_images(study, folder / JOURNAL, first, spaces, goal, console)
        try:
            Search(study, settings, fixed, spaces, labeled, launch, console).run()
        except KeyboardInterrupt:
            console.print("Stopped. The same command resumes the unfinished trials.")
            raise
        finally:
            console.print(summary(study, folder, row_of(goal)))
    if not study.get_trials(states=[TrialState.COMPLETE]):
        raise SystemExit(errors.FAILED)


def in_first_names(space: Space) -> Space:
    """Return a space under its first names, so that a search resumes its study when names change."""
    names = former_names.TABLE
    if isinstance(space, Choices):
        values = tuple(str(names.first_value(space.key, value)) for value in space.values)
        space = replace(space, values=values)
    return replace(space, key=names.first_key(space.key))


def row_of(goal: str) -> Metric:
    """Return the row of a metric that a search looks for, which was checked."""
    row = objective(goal)
    assert row is not None
    return row


def known_study(journal: Path, first: DictConfig, spaces: Sequence[Space], goal: str) -> str:
    """Return the name of the study in the journal: of those that it may have the first that is there."""
    names = study_names(first, spaces, goal)
    try:
        content = read_regular(journal)
    except OSError:  # missing, or what `open_study` says
        return names[0]
    return next((name for name in names if name.encode() in content), names[0])


def study_names(first: DictConfig, spaces: Sequence[Space], goal: str) -> list[str]:
    """Return the keys, and a hash of the spaces and of all that the trials share, under each of its ids.

    Args:
        first: the configuration with the first value of each space.
        spaces: in first names.
        goal: the objective; the names of searches for k-NN, which came first, are without.
    """
    keys = [space.key.rpartition(".")[2] for space in spaces]
    also = [] if goal == KNN.key else [goal]
    contents = (
        json.dumps([each, sorted(map(repr, spaces)), *also], sort_keys=True) for each in identities(first)
    )
    return ["-".join([*keys, hashlib.sha256(text.encode()).hexdigest()[:8]]) for text in contents]


def say_other_images(
    study: optuna.Study,
    journal: Path,
    first: DictConfig,
    spaces: Sequence[Space],
    goal: str,
    console: Console,
) -> None:
    """Say if there is a study that differs only in the images at the place of this one's."""
    if not first.data_content:
        return
    place = study_names(first, spaces, goal)[1]
    if study.user_attrs.get("place") != place:
        study.set_user_attr("place", place)
    for other in optuna.get_all_study_summaries(JournalStorage(JournalFileBackend(str(journal)))):
        if other.study_name != study.study_name and other.user_attrs.get("place") == place:
            console.print(
                f"The images have changed since the study {other.study_name} ({other.n_trials} trials): this "
                f"is another, {study.study_name}. With the former images the same command resumes that one."
            )


def open_study(journal: Path, name: str, settings: Mapping[str, Any]) -> optuna.Study:
    """Return the study of that name, with its earlier trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()  # which colors by escape sequences
    optuna.logging.enable_propagation()
    maximize = row_of(settings["objective"]).better == "higher"
    mend(journal, name, maximize)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name=name,
        direction="maximize" if maximize else "minimize",
        load_if_exists=True,
    )
    # the first seed would propose the first trials again
    study.sampler = a_sampler(settings["sampler"], settings["seed"] + len(study.trials))
    return study


def a_sampler(name: str, seed: int) -> BaseSampler:
    """Return the sampler that proposes trials: tpe or random."""
    if name == "random":
        return RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # in Optuna 4
        # keeps the trials of a batch apart
        return TPESampler(seed=seed, constant_liar=True)


@dataclass(frozen=True)
class Told:
    """The result of a trial for Optuna."""

    state: TrialState
    value: float | None = None
    """Of the objective; None unless the trial is complete."""
    message: str = ""


@dataclass
class Search:
    """The loop of one command."""

    study: optuna.Study
    settings: Mapping[str, Any]
    fixed: Sequence[str]
    """The overrides that all trials share."""
    spaces: Sequence[Space]
    """In first names, as the study has them."""
    compose: Compose
    launch: Launch
    console: Console
    known: dict[str, Told] = field(default_factory=dict)
    """Results of runs by id; no run is trained twice."""
    launched: int = 0

    def run(self) -> None:
        """Train trials until `n_trials` have ended."""
        for trial in self.study.trials:
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and RUN in trial.user_attrs:
                self.known[trial.user_attrs[RUN]] = Told(trial.state, trial.value)
        self.requeue()
        while self.remaining > 0:
            batch = self.ask()
            if batch:
                self.train(batch)

    @property
    def remaining(self) -> int:
        """Trials that have not ended yet, out of `n_trials`."""
        return int(self.settings["n_trials"]) - len(ended(self.study))

    def requeue(self) -> None:
        """Queue the trials that were interrupted before, and those that failed.

        What was running when the process died has a run directory with a checkpoint, so the same values are
        proposed again instead of being lost; told as failed alone, they would also never be tried again.
        """
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            self.study.tell(trial.number, state=TrialState.FAIL)
        failed = [trial for trial in ended(self.study) if trial.state == TrialState.FAIL]
        failed = [trial for trial in failed if REFUSED not in trial.user_attrs]  # others may not fail again
        for trial in failed[: max(0, self.remaining + len(failed))]:
            self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})

    def ask(self) -> dict[str, tuple[Run, list[Trial]]]:
        """Return the runs to train next with their trials, by run id; tell at once what is known."""
        distributions = {space.key: space.distribution() for space in self.spaces}
        batch: dict[str, tuple[Run, list[Trial]]] = {}
        for _ in range(self.remaining):
            if len(batch) == self.settings["n_jobs"]:
                break
            trial = self.study.ask(distributions)
            values = self.overrides_of(trial)
            trial.set_user_attr(OVERRIDES, values)
            try:
                run = replace(self.compose([*self.fixed, *values]), overrides=tuple(values))
            except UserError as error:  # values that do not go together
                trial.set_user_attr(REFUSED, str(error))
                self.tell(trial, Told(TrialState.FAIL, message=str(error)))
                continue
            trial.set_user_attr(RUN, run.run_id)
            if run.run_id in self.known:
                self.tell(trial, self.known[run.run_id])
            else:
                batch.setdefault(run.run_id, (run, []))[1].append(trial)
        return batch

    def train(self, batch: Mapping[str, tuple[Run, Sequence[Trial]]]) -> None:
        """Have a batch trained, and tell Optuna the results."""
        outcomes = self.launch([run for run, _ in batch.values()], self.launched)
        self.launched += len(batch)
        goal, without = self.settings["objective"], None
        for name, (_, trials) in batch.items():
            outcome = outcome_of(name, outcomes)
            self.known[name] = judge(outcome, goal)
            for trial in trials:
                self.tell(trial, self.known[name])
            if outcome.state == "finished" and goal not in outcome.metrics:
                without = name
        if without:
            raise UserError(f"{without}: has no {goal}; {without_labels(goal)}")

    def overrides_of(self, trial: Trial) -> list[str]:
        """Return the values of a trial as they are typed."""
        words = typed({space.key: space.text(trial.params[space.key]) for space in self.spaces})
        return former_names.TABLE.present_words(words)[0]

    def tell(self, trial: Trial, told: Told) -> None:
        """Tell a trial's result to Optuna and to the user."""
        trial.set_user_attr("message", told.message)
        self.study.tell(trial, told.value, told.state)
        how = "pruned, collapsed" if told.state == TrialState.PRUNED else told.message
        if told.value is not None:
            row = row_of(self.settings["objective"])
            how = f"{row.short} {row.text(told.value)}"
        line = f"Trial {trial.number}: {' '.join(self.overrides_of(trial))}: {how}"
        self.console.print(line, soft_wrap=True)


def outcome_of(name: str, outcomes: Sequence[Outcome]) -> Outcome:
    """Return how a run ended; beside an older run, its folder's name ends in a number."""
    for outcome in outcomes:
        if outcome.run_id == name or outcome.run_id.startswith(f"{name}-"):
            return outcome
    return Outcome(name, "lost", errors.FAILED, "the launcher returned no result")


def judge(outcome: Outcome, goal: str) -> Told:
    """Return the result for Optuna: a collapse is a bad result, a failure is none."""
    verdict = outcome.message.removeprefix("finished before; ")
    if outcome.state == "collapsed" or (outcome.state == "finished" and verdict.startswith("collapsed")):
        return Told(TrialState.PRUNED, message=outcome.message)
    value = outcome.metrics.get(goal, math.nan)
    if outcome.state == "finished" and math.isfinite(value):
        return Told(TrialState.COMPLETE, value, outcome.message)
    why = (outcome.message.strip().splitlines() or [""])[-1]
    return Told(TrialState.FAIL, message=f"{outcome.state}: {why}")


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have ended, without those that a retry has replaced."""
    replaced = {trial.user_attrs.get(RETRY_OF) for trial in study.trials}
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in replaced]


def summary(study: optuna.Study, folder: Path, row: Metric) -> Table:
    """Return the table that ends a search."""
    finished = ended(study)
    count = {state: sum(trial.state == state for trial in finished) for state in TrialState}
    rows = {"trials": f"{len(finished)}, of them {count[TrialState.COMPLETE]} complete"}
    if count[TrialState.COMPLETE]:
        best = study.best_trial
        rows[f"best {row.short}"] = f"{row.text(best.value)} (trial {best.number})"
        rows["best overrides"] = " ".join(best.user_attrs.get(OVERRIDES, ["unknown"]))
        rows["its directory"] = str(folder / best.user_attrs.get(RUN, ""))
    rows["pruned (collapsed)"] = str(count[TrialState.PRUNED])
    rows["failed"] = str(count[TrialState.FAIL])
    rows["study"] = f"{study.study_name} in {folder / JOURNAL}"
    return table(f"Search {folder}", rows)
