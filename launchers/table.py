"""Tables of a sweep: its runs, its failures, and the CSV and Parquet files of `collect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dino_exp.atomic import write_atomically
from dino_exp.console import STATE_STYLES
from dino_exp.metrics import BEST_KNN, KNN, SPEED, UNTRAINED_KNN
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.metrics_lines import parse_line
from dino_exp.runs.run_directory import RunDirectory, end_of_attempt
from dino_exp.runs.run_files import number
from dino_exp.streams import visible
from launchers.children import tail
from launchers.states import SILENT_SECONDS, RunState

URGENT = ("failed", "lost", "running", "preempted")
"""States shown first where there is not room for all runs."""
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a cell begins with that spreadsheets run; the wide characters are those of Japanese ones."""
LIVE_WIDTH = 60
"""Greatest width of the overrides in a live table, in characters, so that the other columns have room."""


def number_of_runs(number: int) -> str:
    """Return the number in words: 0 runs, 1 run, 2 runs."""
    return f"{number} run" if number == 1 else f"{number} runs"


def counts(runs: Collection[str]) -> Text:
    """Return how many of the states of runs there are: 9 runs: 4 finished, 2 running, 3 pending."""
    numbers = Counter(runs)
    text = Text(f"{number_of_runs(len(runs))}: ")
    states = sorted(numbers, key=[*STATE_STYLES, *numbers].index)
    parts = (Text(f"{numbers[state]} {state}", STATE_STYLES.get(state, "")) for state in states)
    return text + Text(", ").join(parts)


def runs_table(manifest: Manifest, runs: Sequence[RunState], most: int | None = None) -> RenderableType:
    """Return a table of the runs.

    Args:
        manifest: Manifest of the sweep.
        runs: Runs to show.
        most: Largest number of rows, each on one line; urgent runs come first. None shows all runs.
    """
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
    more = [Text(f"and {rest} more", "dim")] if rest else []
    return Group(table, *more, counts([run.state for run in runs]))


def cells(manifest: Manifest, run: RunState) -> list[str | Text]:
    """Return the row of one run."""
    directory = manifest.directory(run.name)
    summary = directory.read_summary() if run.state in ("finished", "collapsed", "failed") else {}
    last = summary or last_metrics(directory)
    step, total = run.status.get("step"), run.status.get("total_steps")
    knn = last.get(KNN.key)
    return [
        run.label,
        Text(run.state, STATE_STYLES.get(run.state, "")),
        "" if step is None or total is None else f"{step:,}/{total:,}",
        last.get("verdict") or "",
        "" if knn is None else KNN.text(knn),
        run.entry.job or "",
        remark(run),
    ]


def remark(run: RunState) -> str:
    """Return what a person should know about a run besides its state."""
    words = [run.note] if run.note and run.note != "job running" else []
    silent = run.silent_seconds
    if silent is not None and silent > SILENT_SECONDS:
        words.append(f"silent for {silent / 60:.0f} min")
    if len(run.status.get("attempts", [])) > 1:
        words.append(f"attempt {len(run.status['attempts'])}")
    return ", ".join(words)


def last_metrics(directory: RunDirectory) -> dict[str, Any]:
    """Return the last complete line of metrics.jsonl, read from the end of the file."""
    lines = map(str.encode, reversed(tail(directory.metrics_file, 2).splitlines()))
    return next(filter(None, map(parse_line, lines)), {})


def failures(manifest: Manifest, runs: Sequence[RunState], lines: int = 4) -> RenderableType | None:
    """Return a table of failed and lost runs, each with the last lines of its traceback or log."""
    table = Table(title="Failures", title_justify="left", box=None, padding=(0, 2, 1, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("why", overflow="fold")
    for run in runs:
        if run.state in ("failed", "lost"):
            state = Text(run.state, STATE_STYLES[run.state])
            table.add_row(run.label, state, why(manifest, run, lines))
    return table if table.row_count else None


def why(manifest: Manifest, run: RunState, lines: int) -> str:
    """Return the end of a run's traceback or log, or of its job's log if the run wrote neither."""
    directory = manifest.directory(run.name)
    paths = [directory.traceback_file, directory.path / "log.txt"]
    paths += sorted((manifest.folder / "jobs").glob(f"{run.entry.job}_*_log.out")) if run.entry.job else []
    for path in paths:
        text = tail(path, lines).strip()
        if text:
            return "\n".join(filter(None, [run.note, text, f"({path})"]))
    return run.note


def rows(manifest: Manifest, runs: Sequence[RunState]) -> list[dict[str, Any]]:
    """Return one row per run: swept values, outcome, final metrics and cost."""
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
                **{key: number(summary.get(key)) for key in (*KNN.keys, BEST_KNN.key, UNTRAINED_KNN.key)},
                "step": run.status.get("step"),
                **{f"final.{key}": final[key] for key in final if number(final[key]) is not None},
                SPEED.key: summary.get(SPEED.key),
                **cost(run),
                "jobs": " ".join(run.entry.jobs),
            }
        )
    return result


def number_or_text(value: str) -> float | str:
    """Return a swept value as a number if it is one, so that tables sort by it."""
    try:
        return float(value)
    except ValueError:
        return value


def cost(run: RunState) -> dict[str, float]:
    """Return the number of attempts, and their hours and GPU-hours, including work that was lost."""
    hours = gpu_hours = 0.0
    attempts = run.status.get("attempts", [])
    for attempt in attempts:
        until = attempt.get("until") or end_of_attempt(run.status) or attempt["began"]
        spent = max(0.0, until - attempt["began"]) / 3600
        hours += spent
        gpu_hours += spent * attempt.get("processes", 1) * (attempt.get("device") == "cuda")
    return {"attempts": len(attempts), "hours": hours, "gpu_hours": gpu_hours}


def collect(manifest: Manifest, runs: Sequence[RunState]) -> list[Path]:
    """Write `runs.csv` and `runs.parquet` into the sweep's folder, and return their paths."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    content = [
        {visible(key): visible(value) if isinstance(value, str) else value for key, value in row.items()}
        for row in rows(manifest, runs)
    ]
    columns = list(dict.fromkeys(key for row in content for key in row))
    table = pa.table({column: one_type([row.get(column) for row in content]) for column in columns})
    paths = [manifest.folder / "runs.csv", manifest.folder / "runs.parquet"]
    cells = [list(map(defused, table[column].to_pylist())) for column in columns]
    harmless = pa.table(cells, [str(defused(column)) for column in columns])
    write_atomically(paths[0], lambda file: csv.write_csv(harmless, file))
    write_atomically(paths[1], lambda file: parquet.write_table(table, file))
    return paths


def one_type(values: list[Any]) -> list[Any]:
    """Return a column as text if it has text and numbers, e.g. temperatures and the word null."""
    has_text = any(isinstance(value, str) for value in values)
    return [str(value) if has_text and value is not None else value for value in values]


def defused(value: Any) -> Any:
    """Return a cell of a CSV file; text that a spreadsheet would run as a formula begins with an apostrophe.

    Swept values and verdicts may be somebody else's words. Numbers as text, such as -0.5, stay.
    """
    is_formula = isinstance(value, str) and value.startswith(FORMULA_STARTS)
    return f"'{value}" if is_formula and isinstance(number_or_text(value), str) else value
