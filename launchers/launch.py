"""From checked runs to their outcomes: submit what is missing, say so, wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dino_exp import errors
from dino_exp.config.batch_stream import stream_settings, who_shares
from dino_exp.config.launcher_settings import minutes
from dino_exp.config.plugins import NAMED
from dino_exp.config.sweep_runs import Run
from dino_exp.console import Console, a_console
from dino_exp.metrics import numbers
from dino_exp.runs.manifest import Manifest
from dino_exp.training.attempt import Outcome
from launchers import local, slurm
from launchers.approval import remember
from launchers.states import Observer, RunState
from launchers.submission import Submission, Wanted, groups_of, plan, submit, wanted
from launchers.table import cost, last_metrics, number_of_runs, why
from launchers.watch import how_to_come_back, wait


def launch(
    launcher: str, settings: Mapping[str, Any], folder: Path, checked_runs: Sequence[Run]
) -> list[Outcome]:
    """Submit the missing runs of a sweep and wait; return how all ended, or nothing if detached or a dry run.

    Raises:
        UserError: the sweep cannot be submitted.
        KeyboardInterrupt: the user stopped waiting; the runs go on.
    """
    console = a_console()
    runs = wanted(checked_runs, folder)
    ids = {run.name: checked.run_id for run, checked in zip(runs, checked_runs, strict=True)}
    if settings["dry_run"]:
        preview(console, folder, launcher, settings, runs)
        return []
    remember(settings, NAMED)
    submission = submit(folder, launcher, settings, runs)
    announce(console, submission)
    if len(submission.submitted) > 1 and runs_at_once(launcher, settings) > 1:
        console.print(who_shares([stream_settings(run.cfg) for run in runs]), soft_wrap=True)
    if settings["detach"]:
        console.print(how_to_come_back(folder))
        return []
    try:
        states = wait(folder, {*submission.submitted, *submission.skipped}, console)
    except KeyboardInterrupt:
        console.print(f"Stopped waiting. {how_to_come_back(folder)}")
        raise
    outcomes = [outcome(submission.manifest, state) for state in states]
    return [replace(each, run_id=ids.get(each.run_id, each.run_id)) for each in outcomes]


def runs_at_once(launcher: str, settings: Mapping[str, Any]) -> int:
    """Return how many runs train at one time on this machine, or in one job."""
    return len(local.slots(settings)) if launcher == "local" else settings["runs_per_gpu"]


def announce(console: Console, submission: Submission) -> None:
    """Print what was submitted, and what was skipped and why."""
    manifest = submission.manifest
    jobs = sorted({(manifest.runs[name].job or "").partition("_")[0] for name in submission.submitted})
    where = f" as job {', '.join(jobs)}" if manifest.launcher == "slurm" and jobs else ""
    submitted = number_of_runs(len(submission.submitted))
    console.print(f"{manifest.folder}: submitted {submitted}{where}.", soft_wrap=True)
    reasons = Counter(reason.partition(",")[0] for reason in submission.skipped.values())
    for reason, number in reasons.items():
        console.print(f"Skipped: {number} {reason}.")


def outcome(manifest: Manifest, run: RunState) -> Outcome:
    """Return how a run ended."""
    directory = manifest.directory(run.name)
    if run.state in ("failed", "lost"):
        return Outcome(run.name, run.state, errors.FAILED, why(manifest, run, 1))
    summary = directory.read_summary() or last_metrics(directory)
    code = 0 if run.state in ("finished", "collapsed") else errors.INTERRUPTED
    return Outcome(run.name, run.state, code, str(summary.get("verdict") or ""), numbers(summary))


def preview(
    console: Console, folder: Path, launcher: str, settings: Mapping[str, Any], runs: Sequence[Wanted]
) -> None:
    """Print what would be submitted, and what it may cost; create nothing."""
    manifest = Manifest.load_or_new(folder)
    missing, skipped, _ = plan(manifest, runs, settings["max_retries"])
    jobs = len(groups_of(missing, settings["runs_per_gpu"]))
    if launcher == "slurm" and missing:
        console.print(slurm.script(SimpleNamespace(**settings), folder, jobs), soft_wrap=True)
    for run in runs:
        reason = skipped.get(run.name, "to be submitted")
        console.print(f"{' '.join(run.overrides) or run.name}: {reason}", soft_wrap=True)
    console.print(f"{folder}: {len(missing)} of {number_of_runs(len(runs))} would be submitted; nothing was.")
    finished = [cost(run) for run in Observer().observe(manifest) if run.state == "finished"]
    if launcher == "slurm":
        limit = minutes(settings["time_limit"]) / 60
        gpus = settings["nodes"] * settings["gpus_per_node"]
        console.print(
            f"At most {jobs * gpus * limit:,.1f} GPU-hours per attempt: {jobs} jobs x {gpus} GPUs x "
            f"{limit:,.1f} h (hydra.launcher.time_limit)."
        )
    if finished:
        hours = sum(each["hours"] for each in finished) / len(finished)
        gpu_hours = sum(each["gpu_hours"] for each in finished) / len(finished)
        console.print(
            f"The {len(finished)} finished runs of this sweep took {hours:.3g} h and {gpu_hours:.3g} "
            f"GPU-hours each; at that rate the others take {len(missing) * gpu_hours:.3g} GPU-hours."
        )
