"""The study of a search in Optuna's journal: its name, sampler and pruner, and how its trials ended."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from dino_exp.config.identity import identities
from dino_exp.config.search_space import Choices, Space
from dino_exp.console import Console, table
from dino_exp.metrics import KNN, Metric, evaluation_of, objective
from dino_exp.regular_file import read_regular
from dino_exp.runs import former_names
from dino_exp.training.attempt import Outcome
from launchers.search_journal import mend
from launchers.search_runs import PRUNED

JOURNAL = "optuna.journal"
RETRY_OF, REFUSED, RUN, OVERRIDES, WHY = "retry_of", "refused", "run", "overrides", "pruned"
"""Attributes that are stored with a trial."""
COLLAPSED, BEHIND = "collapsed", "behind the others"
"""Why a trial was pruned."""


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


def known_study(journal: Path, names: Sequence[str]) -> str:
    """Return the name of the study in the journal: of those that it may have the first that is there."""
    try:
        content = read_regular(journal)
    except OSError:  # missing, or what `open_study` says
        return names[0]
    return next((name for name in names if name.encode() in content), names[0])


def study_names(first: DictConfig, spaces: Sequence[Space], goal: str, seeds: int) -> list[str]:
    """Return the keys, and a hash of the spaces and of all that the trials share, under each of its ids.

    Args:
        first: the configuration with the first value of each space.
        spaces: in first names.
        goal: the objective; the names of searches for k-NN, which came first, are without.
        seeds: runs of which a trial's value is the mean; one is not in the names either.
    """
    keys = [space.key.rpartition(".")[2] for space in spaces]
    also = [*([] if goal == KNN.key else [goal]), *([] if seeds == 1 else [f"{seeds} seeds"])]
    contents = (
        json.dumps([each, sorted(map(repr, spaces)), *also], sort_keys=True) for each in identities(first)
    )
    return ["-".join([*keys, hashlib.sha256(text.encode()).hexdigest()[:8]]) for text in contents]


def say_other_images(study: optuna.Study, journal: Path, names: Sequence[str], console: Console) -> None:
    """Say if there is a study that differs only in the images at the place of this one's.

    Args:
        study: the present one.
        journal: which may have others.
        names: by the images' content, by their place, and further ones.
        console: to print on.
    """
    place = names[1]
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
    study.pruner = a_pruner(settings["pruner"])
    return study


def a_sampler(name: str, seed: int) -> BaseSampler:
    """Return the sampler that proposes trials: tpe, gp or random; the first two see what is being trained."""
    if name == "random":
        return RandomSampler(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # in Optuna 4
        if name == "gp":
            logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)  # which misses a package
            return GPSampler(seed=seed)
        # takes a trial that is being trained for a bad one, so that the next keeps away from it
        return TPESampler(seed=seed, constant_liar=True)


def a_pruner(name: str) -> BasePruner:
    """Return what ends trials early: none, median, hyperband or asha; a step is one interim value."""
    if name == "median":
        return MedianPruner()
    if name == "hyperband":
        return HyperbandPruner()
    return SuccessiveHalvingPruner(min_resource=1) if name == "asha" else NopPruner()


@dataclass(frozen=True)
class Told:
    """The result of a trial for Optuna."""

    state: TrialState
    value: float | None = None
    """Of the objective; of a pruned trial the last one that is known, if any."""
    message: str = ""
    why: str = ""
    """Why a trial is pruned."""


def told_before(trial: FrozenTrial) -> Told | None:
    """Return the result of a trial that has ended in an earlier command; None if it may be trained again."""
    if trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) or RUN not in trial.user_attrs:
        return None
    if why := why_pruned(trial):
        return Told(TrialState.PRUNED, trial.value, why=why)
    return Told(TrialState.COMPLETE, trial.value)


def why_pruned(trial: FrozenTrial) -> str:
    """Return why a trial was pruned; empty for others. Of earlier versions, collapsed trials were."""
    return trial.user_attrs.get(WHY) or (COLLAPSED if trial.state == TrialState.PRUNED else "")


def judge(outcomes: Sequence[Outcome], goal: str) -> Told:
    """Return the result of a trial from how its runs ended, one per seed; its value is their mean.

    A collapse of one of them is the trial's: its values do not train reliably. A failure is no result.
    """
    for each in filter(has_collapsed, outcomes):
        value = each.metrics.get(goal, math.nan)
        known = value if math.isfinite(value) else None
        return Told(TrialState.PRUNED, known, each.message, COLLAPSED)
    if any(each.state == PRUNED for each in outcomes):
        return Told(TrialState.PRUNED, why=BEHIND)
    values = [each.metrics.get(goal, math.nan) for each in outcomes]
    for each, value in zip(outcomes, values, strict=True):
        if each.state != "finished" or not math.isfinite(value):
            reason = (each.message.strip().splitlines() or [""])[-1]
            return Told(TrialState.FAIL, message=f"{each.state}: {reason}")
    return Told(TrialState.COMPLETE, math.fsum(values) / len(values), outcomes[0].message)


def has_collapsed(outcome: Outcome) -> bool:
    """Return whether a run collapsed, be it that it was trained to its end."""
    verdict = outcome.message.removeprefix("already finished; ")
    return outcome.state == "collapsed" or (outcome.state == "finished" and verdict.startswith("collapsed"))


def tell(study: optuna.Study, trial: int, told: Told, sampler: str, goal: str) -> None:
    """Tell Optuna the result of a trial.

    The Gaussian process learns from complete trials alone and would propose the same collapse again, so it
    gets a pruned one with its last accuracy.
    """
    learns = sampler == "gp" and evaluation_of(goal) is not None
    if told.state == TrialState.COMPLETE or (learns and told.value is not None):
        study.tell(trial, told.value, TrialState.COMPLETE)
    else:
        study.tell(trial, state=told.state)  # of a pruned one Optuna takes the last interim value


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that have ended, without those that a retry has replaced."""
    replaced = {trial.user_attrs.get(RETRY_OF) for trial in study.trials}
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in replaced]


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that were trained to their end without a collapse."""
    trials = study.get_trials(states=[TrialState.COMPLETE])
    return [trial for trial in trials if not why_pruned(trial)]


def summary(study: optuna.Study, folder: Path, row: Metric) -> Table:
    """Return the table that ends a search."""
    finished, good = ended(study), complete(study)
    rows = {"trials": f"{len(finished)}, of them {sum(trial in good for trial in finished)} complete"}
    if good:
        value, number = (max if row.better == "higher" else min)(
            (trial.value, trial.number) for trial in good
        )
        best = study.trials[number]
        rows[f"best {row.short}"] = f"{row.text(value)} (trial {number})"
        rows["best overrides"] = " ".join(best.user_attrs.get(OVERRIDES, ["unknown"]))
        rows["its directory"] = str(folder / best.user_attrs.get(RUN, ""))
    for why in (COLLAPSED, BEHIND):
        count = sum(why_pruned(trial) == why for trial in finished)
        if count or why == COLLAPSED:
            rows[f"pruned ({why})"] = str(count)
    rows["failed"] = str(sum(trial.state == TrialState.FAIL for trial in finished))
    rows["study"] = f"{study.study_name} in {folder / JOURNAL}"
    return table(f"Search {folder}", rows)
