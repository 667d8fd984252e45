"""`python report.py doctor RUN --rescue`: which remedies save a collapsed run, tried on forks of it.

A fork begins with the newest checkpoint from before the decline, so only what follows is trained again. That
is earlier than the onset of the collapse: when outputs are alike, features have been lost for a while.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dino_exp.config.compose import compose_run
from dino_exp.config.data_content import identify
from dino_exp.config.fork import reason_against
from dino_exp.config.hydra_loader import override_text
from dino_exp.config.launcher_settings import with_changes
from dino_exp.config.sweep_runs import Run
from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.metrics import KNN
from dino_exp.report.doctor import collapse_rules, remedies
from dino_exp.report.doctor.training_log import TrainingLog, read_log
from dino_exp.report.values import config_text
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training import forks
from dino_exp.training.attempt import Outcome
from launchers.launch import launch

REMEDIES = 3
Words = tuple[str, ...]


def rescue(path: Path, console: Console) -> int:
    """Train a collapsed run again from before its decline with each remedy; print which of them recover.

    The runs are a sweep beside that of the run, in this machine's queue; the same command takes up what has
    not ended.

    Returns 0 if any recovers, otherwise 1.

    Raises:
        UserError: `path` is no run of ours that has collapsed or diverged, or it cannot be continued.
        KeyboardInterrupt: the user stopped waiting; the runs go on.
    """
    log = read_log(path)
    if not log.config:
        raise UserError(f"{path}: --rescue needs a run directory of this project, with its config.yaml.")
    advice = [
        text
        for rule in (collapse_rules.diverged, collapse_rules.collapsed)
        for each in rule(log)
        for text in each.advice
    ]
    if not advice:
        raise UserError(
            f"{path}: not collapsed (its verdict is {log.verdict or 'not known'}); nothing to rescue."
        )
    onset, decline = collapse_rules.onset(log), collapse_rules.decline(log)
    there = forks.checkpoints(RunDirectory(path))
    step = max((each for each in there if each < decline.at), default=0)
    runs = [run_of(path, step, words) for words in likeliest(log, advice, fork=step > 0)]
    said = f"{path}: {log.verdict} since step {onset.at:,}"
    if decline.at < onset.at:
        said += f"; by step {decline.at:,} it had lost half of its mutual information"
    console.print(f"{said}.", style="bold", soft_wrap=True)
    console.print(_from(step, decline.at, sorted(there)), soft_wrap=True)
    end = path.name[-8:]
    end = end if re.fullmatch("[0-9a-f]{8}", end) else path.name
    folder = path.absolute().parent.with_name(f"{path.absolute().parent.name}_rescue_{end}")
    outcomes = {each.run_id: each for each in launch("local", with_changes("local", {}, ()), folder, runs)}
    tried = [(run.overrides, outcomes[run.run_id]) for run in runs]
    console.print(_conclusion(tried, log), soft_wrap=True)
    return int(not any(_recovers(outcome) for _, outcome in tried))


def likeliest(log: TrainingLog, advice: Sequence[str], fork: bool) -> list[Words]:
    """Return the overrides of the three likeliest remedies, the doctor's own advice first.

    Args:
        log: of the run.
        advice: for its collapse.
        fork: leave out what cannot change in a fork.
    """
    found: list[Words] = []
    for words in _candidates(log, advice):
        by_key = {word.partition("=")[0]: word for word in words}  # a remedy may set a missing part
        changing = (word for word in by_key.values() if _changes(log, word))
        possible = tuple(word for word in changing if not (fork and reason_against(word.partition("=")[0])))
        if possible and set(possible) not in map(set, found):
            found.append(possible)
    return found[:REMEDIES]


def _candidates(log: TrainingLog, advice: Sequence[str]) -> Iterator[Words]:
    """Yield the advice as overrides; then general remedies, with the missing parts if there are some."""
    missing = tuple(word for text in remedies.missing_parts(log) for word in remedies.words_of(text))
    if missing:
        yield missing
    yield from (missing + remedies.words_of(text) for text in advice)
    general = (remedies.following_center(log), *remedies.sharper_teacher(log))
    general += (remedies.lower_learning_rate(log), "ema.momentum=0.996")
    yield from (missing + remedies.words_of(text) for text in general)


def _changes(log: TrainingLog, word: str) -> bool:
    key, _, value = word.partition("=")
    return config_text(value) != config_text(log.setting(key))


def run_of(path: Path, step: int, words: Words) -> Run:
    """Return the checked run that forks a step with these overrides, and ends at another collapse.

    Raises:
        UserError: the run cannot be continued.
    """
    typed = [override_text("fork_from", f"{path.absolute()}@{step}"), *words, "trainer.on_collapse=stop"]
    (run,), problems, _ = identify([compose_run(forks.with_parent(typed))], here=True)
    if problems:
        raise UserError("\n".join(problems))
    return replace(run, overrides=words)


def _from(step: int, decline: int, there: Sequence[int]) -> str:
    if step:
        return f"Each remedy is tried from step {step:,}, the newest checkpoint from before."
    kept = f"only of {', '.join(f'{each:,}' for each in there)}" if there else "none at all"
    return (
        f"There is no checkpoint from before (they are {kept}), so each remedy is tried from step 0. To have "
        f"some, train with trainer.keep_checkpoints=every:{max(1, decline // 2)}."
    )


def _recovers(outcome: Outcome) -> bool:
    return (outcome.state, outcome.message) == ("finished", "healthy")


def _conclusion(tried: Sequence[tuple[Words, Outcome]], log: TrainingLog) -> str:
    saved = [(words, outcome.metrics.get(KNN.key)) for words, outcome in tried if _recovers(outcome)]
    if not saved:
        spared = sum(outcome.message in ("slow", "warming-up") for _, outcome in tried)
        end = f"; {spared} did not collapse again, but {'has' if spared == 1 else 'have'} not learned yet"
        return f"None of {len(tried)} recovers{end if spared else ''}."
    words, value = max(saved, key=lambda each: each[1] or 0.0)
    before = f", and {KNN.text(log.knn[-1][1])} in the collapsed run" if log.knn else ""
    knn = "" if value is None else f" ({KNN.short} {KNN.text(value)}{before})"
    return f"{len(saved)} of {len(tried)} recover; the best with {' '.join(words)}{knn}."
