"""The table of all runs on a sweep's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dino_exp.metrics import KNN, STEP, UNTRAINED_KNN, in_words, shown_in
from dino_exp.plots.drawing import number_text
from dino_exp.report.evaluation_records import KINDS, Result, title
from dino_exp.report.evaluation_results import by_evaluation, differing_circumstances, step_note
from dino_exp.report.run_data import RunData, SweepData
from dino_exp.report.sweep.cells import short_heads
from dino_exp.report.values import value_text

MOST_COLUMNS = 6
"""Columns of results of `evaluate.py`."""

Cell = tuple[str, Any]
"""Text, and the value to sort by."""


class Head(NamedTuple):
    """The head of a column."""

    text: str
    meaning: str = ""
    """What the text is short for."""
    best_first: bool = False
    """Sort from the highest value down, at the first click."""


def table(
    sweep: SweepData, links: Sequence[str], problems: list[str]
) -> tuple[list[Head], list[tuple[RunData, str, list[Cell]]]]:
    """Return heads and rows of the table; `problems` gets a line for figures that cannot be compared."""
    axes = list(sweep.axes)
    found = columns(sweep.runs, problems)
    heads = [Head("state"), Head("verdict"), Head(KNN.head, best_first=True)]
    heads += map(Head, short_heads(axes), axes)
    heads += [Head(text, best_first=True) for text in ("student %", UNTRAINED_KNN.head, "gain")]
    heads += [Head(column.head, column.meaning, best_first=True) for column in found]
    heads += [Head(row.head, best_first=row.better == "higher") for row in shown_in("column")]
    return heads, [
        (run, link, _cells(sweep, run, [column.values[index] for column in found]))
        for index, (run, link) in enumerate(zip(sweep.runs, links, strict=True))
    ]


def _cells(sweep: SweepData, run: RunData, found: Sequence[float | None]) -> list[Cell]:
    gain = None if run.knn is None or run.untrained_knn is None else run.knn - run.untrained_knn
    student = run.last(str(KNN.student_key)) if run.knn is not None else None
    numbers = [
        (student, KNN.form),
        (run.untrained_knn, KNN.form),
        (gain, "+.1f"),
        *((value, ".1f") for value in found),
        *((run.step if row is STEP else run.last(row.key), row.form) for row in shown_in("column")),
    ]
    swept = [(value_text(run.values[axis]), run.values[axis]) for axis in sweep.axes]
    first = [(run.state, run.state), (run.verdict or "–", run.verdict), _number_cell(run.knn, KNN.form)]
    return [*first, *swept, *(_number_cell(value, form) for value, form in numbers)]


def _number_cell(value: float | None, form: str) -> Cell:
    return number_text(value, form), "" if value is None else value


# ---- results of evaluate.py --------------------------------------------------------------------------------


class Column(NamedTuple):
    """A figure of an evaluation, of all runs."""

    head: str
    meaning: str
    values: list[float | None]


def columns(runs: Sequence[RunData], problems: list[str]) -> list[Column]:
    """Return a column per evaluation: its main figure in the newest result of each run.

    The k-NN is dropped if it equals that of the training. `problems` gets a line for figures that cannot be
    compared.
    """
    names = [result.evaluation for result in by_evaluation(each for run in runs for each in run.evaluations)]
    found = []
    for name in dict.fromkeys(names):
        figure = _main_figure(name, runs)
        newest = [_newest(run, name, figure) for run in runs]
        values = [result.figures[figure] if result else None for result in newest]
        known = [(run, value) for run, value in zip(runs, values, strict=True) if value is not None]
        same = all(run.knn is not None and abs(value - run.knn) < 0.05 for run, value in known)
        if not known or (name == "knn" and same):
            continue
        head = KINDS[name].head if name in KINDS else f"{name} %"
        found.append(Column(head, f"{title(name)}: {in_words(figure)}, the newest result", values))
        if len(found) <= MOST_COLUMNS:
            problems += _incomparable(title(name), runs, newest)
    return found[:MOST_COLUMNS]


def _main_figure(evaluation: str, runs: Sequence[RunData]) -> str:
    """Return the figure of KINDS if a run has it, else the first figure."""
    results = [each for run in runs for each in run.evaluations if each.evaluation == evaluation]
    names = [name for each in results for name, value in each.figures.items() if value is not None]
    preferred = KINDS[evaluation].figure if evaluation in KINDS else ""
    return preferred if preferred in names or not names else names[0]


def _newest(run: RunData, evaluation: str, figure: str) -> Result | None:
    fitting = (each for each in reversed(run.evaluations) if each.evaluation == evaluation)
    return next((each for each in fitting if each.figures.get(figure) is not None), None)


def _incomparable(evaluation: str, runs: Sequence[RunData], newest: Sequence[Result | None]) -> Iterable[str]:
    pairs = [(run, result) for run, result in zip(runs, newest, strict=True) if result]
    results = [result for _, result in pairs]
    unlike = [key for key in ("network", "checkpoint", "data") if len({getattr(r, key) for r in results}) > 1]
    unlike += [key for key in differing_circumstances(results) if key != "weights"]
    if unlike:
        yield f"{evaluation}: the runs' figures were measured differently, in {', '.join(unlike)}."
    old = sum(step_note(result, run) != "" and result.checkpoint == "last" for run, result in pairs)
    if old:
        runs_text = "1 run" if old == 1 else f"{old} runs"
        yield f"{evaluation}: the figure of {runs_text} is not of the last step."
