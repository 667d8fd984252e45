"""Loading of a run's or a sweep's folder, in whatever state its files are.

Nothing here raises because of what a run wrote or failed to write: `problems` lists what is missing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from dino_exp.config.stored import read_if_possible
from dino_exp.errors import UserError
from dino_exp.metrics import ENTROPY, LOSS
from dino_exp.report.evaluation_records import read_evaluations
from dino_exp.report.run_data import RunData, SweepData
from dino_exp.report.sweep.axes import find_axes
from dino_exp.report.values import value_text
from dino_exp.runs.manifest import FIELDS, Manifest, is_name
from dino_exp.runs.metrics_lines import read_metrics
from dino_exp.runs.run_directory import RunDirectory, newer_format
from dino_exp.runs.run_files import STATUS, if_readable, is_file_inside, is_inside, number, read_object
from launchers.children import tail
from launchers.states import SILENT_SECONDS, Observer

RUN_FILES = ("config.yaml", "status.json", "metrics.jsonl", "summary.json")
RUN_NAME = re.compile(r".+_[0-9a-f]{8}(-\d+)?")
"""Names of run folders, including those in which nothing has been written yet."""
MOST_POINTS = 150
"""Points of a curve on a page."""
SWEEP_POINTS = 24_000
"""Points of the curves of all runs of a sweep together."""


def load(path: Path) -> RunData | SweepData:
    """Load the folder of a run or a sweep; an empty folder is a sweep without runs.

    Raises:
        UserError: it is neither.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the folder of a run or of a sweep, e.g. outputs/demo.")
    if any((path / name).exists() for name in RUN_FILES):
        return load_run(path)
    folders = run_folders(path)
    if folders or Manifest.path(path).exists():
        return load_sweep(path)
    if RUN_NAME.fullmatch(path.resolve().name):
        return load_run(path)
    left = [each for each in path.iterdir() if each.name != "report" and not each.name.startswith(".")]
    if left:
        inside = sorted(each.name for each in left if each.is_dir() and run_folders(each))
        hint = f" Its folder {inside[0]} contains runs." if inside else ""
        raise UserError(
            f"{path}: neither a run nor a sweep; there is no config.yaml in it or in its folders.{hint}"
        )
    return load_sweep(path)


def run_folders(path: Path) -> list[Path]:
    """Return the folders in `path` that are runs, including those in which nothing has been written."""
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    return [
        each
        for each in folders
        if any((each / name).exists() for name in RUN_FILES) or RUN_NAME.fullmatch(each.name)
    ]


def load_run(path: Path, most: int | None = None) -> RunData:
    """Load the folder of a run; its problems say what is missing.

    Args:
        path: the run directory.
        most: how many records of its metrics to read, about; None is all.
    """
    run, said = RunData(path), list[str]()
    status_file, metrics_file = path / "status.json", path / "metrics.jsonl"
    run.status = if_readable(lambda: read_object(status_file, STATUS, said), {}, said)
    if newer_format(run.status):
        said.append(f"status.json: {newer_format(run.status)}. This page may be wrong.")
    run.summary = if_readable(lambda: RunDirectory(path).read_summary(said), {}, said)
    run.metrics = if_readable(lambda: read_metrics(metrics_file, said, most), [], said)
    run.problems += said
    run.evaluations = read_evaluations(path, run.problems)
    if most is None:
        run.config = read_if_possible(path / "config.yaml", run.problems)
    if not run.metrics:
        run.problems.append("No metrics were logged.")
    elif run.knn is None and run.total_steps in (None, run.step):  # others have not made all their steps
        run.problems.append("No k-NN of the trained network was measured.")
    for name in (LOSS.key, ENTROPY.key):
        if step := next((step for step, value in run.series(name) if value is None), None):
            run.problems.append(f"{name} is not a number at step {step:,}.")
    run.state, run.note = state_of(run)
    if run.state == "cancelled" and most is None:  # a sweep asks for all its runs at once
        entry = _manifest(path.absolute().parent, []).runs.get(path.name)
        run.state = "pruned" if entry and entry.pruned else run.state
    if run.state in ("failed", "lost"):
        run.last_lines = last_lines(path)
    return run


def state_of(run: RunData) -> tuple[str, str]:
    """Return state and note of a run without a manifest; a silent run that no process holds is lost."""
    known = run.status.get("state") or run.summary.get("state")
    if not known:
        return ("unknown", "no status.json") if run.metrics else ("pending", "nothing has been logged yet")
    heartbeat = number(run.status.get("heartbeat"))
    # a heartbeat in the future tells nothing either: the clock was set back
    silent = heartbeat is None or abs(time.time() - heartbeat) > SILENT_SECONDS
    if known == "running" and silent and not RunDirectory(run.path).is_held():
        since = "" if heartbeat is None else f" since {utc(heartbeat)}"
        return "lost", f"no sign of life{since}"
    return str(known), ""


def utc(seconds: float | None) -> str:
    """Return a time in seconds since 1970 as text; empty for what is not a time."""
    try:
        return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""


def last_lines(path: Path, job_logs: Iterable[Path] = ()) -> str:
    """Return the last lines of a run's traceback or log, or of its job's log if it wrote neither."""
    own = [path / "traceback.txt", path / "log.txt"]
    for file in (*own, *job_logs):
        with suppress(OSError):
            if not is_file_inside(file, path if file in own else path.parent):
                continue
            if text := tail(file, 6).strip():
                return text
    return ""


def load_sweep(path: Path) -> SweepData:
    """Load a folder of runs, with or without a launcher's manifest."""
    sweep = SweepData(path)
    manifest = _manifest(path, sweep.problems)
    names = list(dict.fromkeys((*manifest.runs, *(each.name for each in run_folders(path)))))
    most = max(24, min(MOST_POINTS, SWEEP_POINTS // max(1, len(names))))
    for name in [each for each in names if (path / each).is_symlink() and not is_inside(path / each, path)]:
        names.remove(name)
        manifest.runs.pop(name, None)
        sweep.problems.append(f"{name} is a link to elsewhere, and not shown; report on that folder itself.")
    sweep.runs = [load_run(path / name, most) for name in names]
    if manifest.runs:
        _states_from(manifest, sweep)
    find_axes(sweep)
    data = sweep.axes.get("data.name") or sweep.axes.get("experiment") or []
    if len(data) > 1:
        some = ", ".join(map(value_text, data[:6]))
        sweep.problems.append(f"The runs use several data sets ({some}); their k-NN cannot be compared.")
    if not sweep.runs:
        sweep.problems.append("There are no runs in this folder.")
    return sweep


def _manifest(path: Path, problems: list[str]) -> Manifest:
    """Return what can be used of the manifest."""
    file = Manifest.path(path)
    content: dict[str, Any] = if_readable(lambda: read_object(file, FIELDS, problems), {}, problems)
    if newer_format(content):
        problems.append(f"manifest.json: {newer_format(content)}. This page may be wrong.")
    if not content:
        return Manifest(path)
    manifest = Manifest.of(path, content, problems)
    for name in [name for name in manifest.runs if not is_name(name)]:
        problems.append(f"manifest.json: {name!r} is not the name of a run.")
        del manifest.runs[name]
    return manifest


def _states_from(manifest: Manifest, sweep: SweepData) -> None:
    """Set the states of runs from launchers and SLURM, which know more than the files."""
    runs = {run.name: run for run in sweep.runs}
    readable = {
        name: entry
        for name, entry in manifest.runs.items()
        if not any("status.json" in problem for problem in runs[name].problems)
    }
    for name, entry in manifest.runs.items():
        runs[name].overrides = entry.overrides
    for run in sweep.runs:
        if run.name not in manifest.runs:
            run.note = "not in the manifest"
    try:
        states = Observer().observe(Manifest(manifest.folder, manifest.launcher, {}, readable))
    except (OSError, UserError) as error:
        sweep.problems.append(f"The states of the jobs are unknown: {error}.")
        return
    for state in states:
        run = runs[state.name]
        run.state, run.note = state.state, state.note
        if run.state in ("failed", "lost", "cancelled"):
            logs = sorted((manifest.folder / "jobs").glob(f"{state.entry.job}_*_log.out"))
            run.last_lines = last_lines(run.path, logs)
