"""A sweep as tables: live while it goes on, its failures at the end, and as CSV and Parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dino_exp.metrics import BEST_KNN, KNN, SPEED, UNTRAINED_KNN
from dino_exp.runs import former_names
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory
from launchers.children import tail
from launchers.states import SILENT_SECONDS, RunState

STYLES = {
    "finished": "green",
    "running": "cyan",
    "pending": "dim",
    "preempted": "yellow",
    "collapsed": "red",
    "failed": "bold red",
    "lost": "bold red",
    "cancelled": "magenta",
}
"""Also the order in which states are counted."""
URGENT = ("failed", "lost", "running", "preempted")
"""States that a person wants to see first."""
LIVE_WIDTH = 60
"""Columns of a run's overrides in a live table, so that the other columns have room."""


def counts(runs: Sequence[RunState]) -> Text:
    """9 runs: 4 finished, 2 running, 3 pending"""
    numbers = Counter(run.state for run in runs)
    text = Text(f"{len(runs)} runs: ")
    parts = [Text(f"{numbers[state]} {state}", style) for state, style in STYLES.items() if numbers[state]]
    return text + Text(", ").join(parts)


def sweep_table(manifest: Manifest, runs: Sequence[RunState], most: int | None = None) -> RenderableType:
    """The runs; where only so many lines fit, those that move or need someone, each on one line."""
    shown = list(runs)
    if most is not None and len(shown) > most:
        shown = sorted(shown, key=lambda run: URGENT.index(run.state) if run.state in URGENT else len(URGENT))
        shown = shown[:most]
    table = Table(title=f"Sweep {manifest.folder}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    free: dict[str, Any] = {"overflow": "fold"} if most is None else {"overflow": "ellipsis", "no_wrap": True}
    table.add_column("run", max_width=None if most is None else LIVE_WIDTH, **free)
    table.add_column("state", no_wrap=True)
    table.add_column("step", no_wrap=True, justify="right")
    table.add_column("verdict", no_wrap=True)
    table.add_column(KNN.short, no_wrap=True, justify="right")
    table.add_column("job", no_wrap=True, style="dim")
    table.add_column("", **free)
    for run in shown:
        table.add_row(*cells(manifest, run))
    rest = len(runs) - len(shown)
    lines: list[RenderableType] = [table, *([Text(f"and {rest} more", "dim")] if rest else []), counts(runs)]
    return Group(*lines)


def cells(manifest: Manifest, run: RunState) -> list[Text]:
    """One run's row."""
    directory = manifest.directory(run.name)
    summary = directory.read_summary() if run.state in ("finished", "collapsed", "failed") else {}
    last = summary or last_metrics(directory)
    step, total = run.status.get("step"), run.status.get("total_steps")
    knn = last.get(KNN.key)
    return [
        Text(" ".join(run.entry.overrides) or run.name),
        Text(run.state, STYLES.get(run.state, "")),
        Text("" if step is None else f"{step:,}/{total:,}"),
        Text(last.get("verdict") or ""),
        Text("" if knn is None else KNN.text(knn)),
        Text(run.entry.job or ""),
        Text(remark(run)),
    ]


def remark(run: RunState) -> str:
    """What a person should know about a run beside its state."""
    words = [run.note] if run.note and run.note != "job running" else []
    silent = run.silent_seconds
    if silent is not None and silent > SILENT_SECONDS:
        words.append(f"silent for {silent / 60:.0f} min")
    if len(run.status.get("attempts", [])) > 1:
        words.append(f"attempt {len(run.status['attempts'])}")
    return ", ".join(words)


def last_metrics(directory: RunDirectory) -> dict[str, Any]:
    """The last whole line of metrics.jsonl, read from its end."""
    import json

    for line in reversed(tail(directory.metrics_file, 2).splitlines()):
        try:
            return former_names.TABLE.present_record(json.loads(line))
        except json.JSONDecodeError:
            continue
    return {}


def failures(manifest: Manifest, runs: Sequence[RunState], lines: int = 4) -> RenderableType | None:
    """The runs that failed or were lost, each with the last lines of its traceback or log."""
    table = Table(title="Failures", title_justify="left", box=None, padding=(0, 2, 1, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("why", overflow="fold")
    for run in runs:
        if run.state in ("failed", "lost"):
            table.add_row(
                Text(" ".join(run.entry.overrides) or run.name),
                Text(run.state, STYLES[run.state]),
                Text(why(manifest, run, lines)),
            )
    return table if table.row_count else None


def why(manifest: Manifest, run: RunState, lines: int) -> str:
    """The last words of a run, or of its job where it never came to speak."""
    directory = manifest.directory(run.name)
    places = [directory.traceback_file, directory.path / "log.txt"]
    places += sorted((manifest.folder / "jobs").glob(f"{run.entry.job}_*_log.out")) if run.entry.job else []
    for place in places:
        text = tail(place, lines).strip()
        if text:
            return "\n".join(filter(None, [run.note, text, f"({place})"]))
    return run.note


def rows(manifest: Manifest, runs: Sequence[RunState]) -> list[dict[str, Any]]:
    """One row per run: what was swept, how it ended, its final figures, and what it cost."""
    result = []
    for run in runs:
        summary = manifest.directory(run.name).read_summary()
        final = summary.get("final", {})
        swept = dict(override.partition("=")[::2] for override in run.entry.overrides)
        result.append(
            {
                "run": run.name,
                **{key: number_or_text(value) for key, value in swept.items()},
                "state": run.state,
                "verdict": summary.get("verdict"),
                **{key: summary.get(key) for key in (*KNN.keys, BEST_KNN.key, UNTRAINED_KNN.key)},
                "step": run.status.get("step"),
                **{f"final.{key}": final[key] for key in final if isinstance(final[key], (int, float))},
                SPEED.key: summary.get(SPEED.key),
                **cost(run),
                "jobs": " ".join(run.entry.jobs),
            }
        )
    return result


def number_or_text(value: str) -> float | str:
    """A swept value in its own type, so that a table can be sorted by it."""
    try:
        return float(value)
    except ValueError:
        return value


def cost(run: RunState) -> dict[str, float]:
    """Attempts, and hours in which they held the machine, work that was lost included."""
    hours = gpu_hours = 0.0
    attempts = run.status.get("attempts", [])
    for attempt in attempts:
        until = attempt.get("until") or run.status.get("heartbeat") or attempt["began"]
        spent = max(0.0, until - attempt["began"]) / 3600
        hours += spent
        gpu_hours += spent * attempt["processes"] * (attempt["device"] == "cuda")
    return {"attempts": len(attempts), "hours": hours, "gpu_hours": gpu_hours}


def collect(manifest: Manifest, runs: Sequence[RunState]) -> list[Path]:
    """Write `runs.csv` and `runs.parquet` into the sweep's folder."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    content = rows(manifest, runs)
    columns = list(dict.fromkeys(key for row in content for key in row))
    table = pa.table({column: one_type([row.get(column) for row in content]) for column in columns})
    paths = [manifest.folder / "runs.csv", manifest.folder / "runs.parquet"]
    csv.write_csv(table, paths[0])
    parquet.write_table(table, paths[1])
    return paths


def one_type(values: list[Any]) -> list[Any]:
    """Text throughout where a column has both, as with temperatures and the word null."""
    return (
        [None if value is None else str(value) for value in values]
        if any(isinstance(value, str) for value in values)
        else values
    )
