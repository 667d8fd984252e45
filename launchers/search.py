"""A search by Optuna: a trial is asked for whenever one has ended, trained, and told how it ended.

The studies are in `optuna.journal` in the sweep's folder, one for each configuration and space, so the same
command resumes its own study. Each trial's runs are ordinary runs of the sweep, one per seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from dino_exp import errors
from dino_exp.config import data_content
from dino_exp.config.launcher_settings import SEED, without_labels
from dino_exp.config.search_space import Space, probes, typed
from dino_exp.config.sweep_runs import Run
from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.metrics import evaluation_of
from dino_exp.runs import former_names
from dino_exp.runs.manifest import Manifest
from dino_exp.training.attempt import Outcome
from launchers import search_study as studies
from launchers.one_search import alone
from launchers.search_runs import Training
from launchers.search_study import JOURNAL, Told

Compose = Callable[[Sequence[str]], Run]
"""Returns the checked run of some overrides, or raises `UserError`."""


def search(
    settings: Mapping[str, Any],
    folder: Path,
    fixed: Sequence[str],
    spaces: Sequence[Space],
    compose: Compose,
    training: Training,
    console: Console,
) -> None:
    """Search for the best of a metric, as `hydra/sweeper=optuna` asks for; trials differ in `spaces`.

    Raises:
        UserError: something must be fixed before the search can continue.
        SystemExit: no trial is complete.
        KeyboardInterrupt: the user stopped it.
    """
    goal, journal = settings["objective"], folder / JOURNAL

    def labeled(words: Sequence[str]) -> Run:
        run = compose(words)
        if evaluation_of(goal) and data_content.lack_labels(run.cfg):
            raise UserError(f"data.root = {run.cfg.data.root}: {without_labels(goal)}")
        return run

    Manifest.load_or_new(folder)  # refuses one of a newer version before anything is created
    first = labeled(probes(fixed, spaces)[0]).cfg
    if first.trainer.on_collapse == "stop":
        console.print("Runs end at their collapse; trainer.on_collapse=warn trains them to their ends.")
    with alone(folder):
        spaces = [studies.in_first_names(space) for space in spaces]
        names = studies.study_names(first, spaces, goal, settings["seeds"])
        study = studies.open_study(journal, studies.known_study(journal, names), settings)
        if first.data_content:
            studies.say_other_images(study, journal, names, console)
        try:
            Search(study, settings, fixed, spaces, labeled, training, console).run()
        except KeyboardInterrupt:
            console.print("Stopped. The same command resumes the unfinished trials.")
            raise
        finally:
            console.print(studies.summary(study, folder, studies.row_of(goal)))
    if not studies.complete(study):
        raise SystemExit(errors.FAILED)


@dataclass
class Candidate:
    """Values that are being trained: a run for each seed, and the trials that have proposed them."""

    runs: Sequence[Run]
    trials: list[Trial]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """How runs have ended, by run id."""
    values: list[float] = field(default_factory=list)
    """The interim values that Optuna knows."""
    pruned: bool = False
    """Whether the runs were told to stop."""

    @property
    def open(self) -> list[str]:
        """The ids of the runs that have not ended."""
        return [run.run_id for run in self.runs if run.run_id not in self.outcomes]


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
    training: Training
    console: Console
    known: dict[str, Told] = field(default_factory=dict)
    """Results by the id of a trial's first run; no run is trained twice."""
    candidates: dict[str, Candidate] = field(default_factory=dict)
    """What is being trained, likewise."""

    def run(self) -> None:
        """Train trials until `n_trials` have ended."""
        for trial in self.study.trials:
            if told := studies.told_before(trial):
                self.known[trial.user_attrs[studies.RUN]] = told
        self.requeue()
        while self.fill():
            outcomes = self.training.ended()
            for outcome in outcomes:
                self.add(outcome)
            for candidate in self.candidates.values():
                self.compare(candidate)

    @property
    def remaining(self) -> int:
        """Trials that have not been asked for yet, out of `n_trials`."""
        running = sum(len(candidate.trials) for candidate in self.candidates.values())
        return int(self.settings["n_trials"]) - len(studies.ended(self.study)) - running

    def requeue(self) -> None:
        """Queue the trials that were interrupted before, and those that failed.

        What was running when the process died has a run directory with a checkpoint, so the same values are
        proposed again instead of being lost; told as failed alone, they would also never be tried again.
        """
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            self.study.tell(trial.number, state=TrialState.FAIL)
        failed = [trial for trial in studies.ended(self.study) if trial.state == TrialState.FAIL]
        # others may not fail again
        failed = [trial for trial in failed if studies.REFUSED not in trial.user_attrs]
        for trial in failed[: max(0, self.remaining + len(failed))]:
            self.study.enqueue_trial(trial.params, user_attrs={studies.RETRY_OF: trial.number})

    def fill(self) -> bool:
        """Ask for trials until `n_jobs` are being trained; return whether any is."""
        runs: list[Run] = []
        while len(self.candidates) < self.settings["n_jobs"] and self.remaining > 0:
            runs += self.ask()
        if runs:
            self.training.start(runs)
        return bool(self.candidates)

    def ask(self) -> Sequence[Run]:
        """Ask for a trial, and return the runs to start; none if its result is known, or will be."""
        trial = self.study.ask({space.key: space.distribution() for space in self.spaces})
        values = self.overrides_of(trial)
        trial.set_user_attr(studies.OVERRIDES, values)
        try:
            runs = self.runs_of(values)
        except UserError as error:  # values that do not go together
            trial.set_user_attr(studies.REFUSED, str(error))
            self.tell(trial, Told(TrialState.FAIL, message=str(error)))
            return []
        name = runs[0].run_id
        trial.set_user_attr(studies.RUN, name)
        if name in self.known:
            self.tell(trial, self.known[name])
        elif name in self.candidates:
            self.candidates[name].trials.append(trial)
        else:
            self.candidates[name] = Candidate(runs, [trial])
            return runs
        return []

    def runs_of(self, values: Sequence[str]) -> list[Run]:
        """Return the checked runs of a trial: with the configuration's seed, and with those that follow."""
        words = [*self.fixed, *values]
        runs = [replace(self.compose(words), overrides=tuple(values))]
        words = [word for word in words if not word.startswith(f"{SEED}=")]
        first = runs[0].cfg.trainer.seed
        for seed in range(first + 1, first + self.settings["seeds"]):
            own = f"{SEED}={seed}"
            runs.append(replace(self.compose([*words, own]), overrides=(*values, own)))
        return runs

    def add(self, outcome: Outcome) -> None:
        """Note how a run ended; tell the result of its trials once their runs have."""
        names = [name for name, each in self.candidates.items() if outcome.run_id in each.open]
        for name in names:
            candidate = self.candidates[name]
            candidate.outcomes[outcome.run_id] = outcome
            if not candidate.open:
                self.report(candidate)
                del self.candidates[name]
                self.close(name, candidate)
            elif studies.has_collapsed(outcome) and not candidate.pruned:
                candidate.pruned = True
                self.training.prune(candidate.open)

    def close(self, name: str, candidate: Candidate) -> None:
        """Tell the result of a candidate whose runs have ended.

        Raises:
            UserError: a run has finished without the objective.
        """
        goal, outcomes = self.settings["objective"], list(candidate.outcomes.values())
        told = studies.judge(outcomes, goal)
        if told.state == TrialState.PRUNED and told.value is None and candidate.values:
            told = replace(told, value=candidate.values[-1])
        self.known[name] = told
        for trial in candidate.trials:
            self.tell(trial, told)
        if told.state == TrialState.COMPLETE and self.settings["pruner"] != "none" and not candidate.values:
            self.console.print(
                f"Not to be pruned: it had no {goal} between a tenth of its steps and its end; lower "
                "eval.every_epochs.",
                soft_wrap=True,
            )
        for outcome in outcomes:
            if outcome.state == "finished" and goal not in outcome.metrics:
                raise UserError(f"{outcome.run_id}: has no {goal}; {without_labels(goal)}")

    def report(self, candidate: Candidate) -> bool:
        """Report the interim values that are new, means over the seeds; return whether to prune."""
        behind = False
        values = [self.training.interim(run.run_id) for run in candidate.runs]
        for each in list(zip(*values, strict=False))[len(candidate.values) :]:
            candidate.values.append(math.fsum(each) / len(each))
            for trial in candidate.trials:
                trial.report(candidate.values[-1], len(candidate.values))
            behind |= candidate.trials[0].should_prune()
        return behind

    def compare(self, candidate: Candidate) -> None:
        """Have the runs of a candidate stopped if the pruner finds it behind the others."""
        if not candidate.pruned and self.report(candidate):
            candidate.pruned = True
            self.training.prune(candidate.open)

    def overrides_of(self, trial: Trial) -> list[str]:
        """Return the values of a trial as they are typed."""
        words = typed({space.key: space.text(trial.params[space.key]) for space in self.spaces})
        return former_names.TABLE.present_words(words)[0]

    def tell(self, trial: Trial, told: Told) -> None:
        """Tell a trial's result to Optuna and to the user."""
        goal, sampler = self.settings["objective"], self.settings["sampler"]
        trial.set_user_attr("message", told.message)
        if told.why:
            trial.set_user_attr(studies.WHY, told.why)
        studies.tell(self.study, trial.number, told, sampler, goal)
        row = studies.row_of(goal)
        value = "" if told.value is None else f"{row.short} {row.text(told.value)}"
        how = ", ".join(filter(None, ["pruned", told.why, value])) if told.why else value or told.message
        line = f"Trial {trial.number}: {' '.join(self.overrides_of(trial))}: {how}"
        self.console.print(line, soft_wrap=True)
