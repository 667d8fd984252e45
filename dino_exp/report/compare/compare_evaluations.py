"""Comparison of the evaluations of two runs or sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dino_exp.metrics import in_words
from dino_exp.report.compare.comparison import Comparison, spread_text
from dino_exp.report.evaluation_records import Result, title
from dino_exp.report.evaluation_results import by_evaluation
from dino_exp.report.run_data import RunData
from dino_exp.report.sweep.cells import spread


class Measured(NamedTuple):
    """Everything that must be equal for two figures to be comparable."""

    evaluation: str
    network: str
    checkpoint: str
    data: str
    circumstances: frozenset[tuple[str, str]]
    figure: str


def evaluation_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return runs, evaluation, figure, A, B and B − A for each figure that both sides of a pair have."""
    rows: list[tuple[str, ...]] = []
    for pair in comparison.both:
        a, b = _figures(pair.a), _figures(pair.b)
        both = [each for each in a if each in b]
        for measured in both:
            (first, _, _), (second, _, _) = spread(a[measured]), spread(b[measured])
            if first is not None and second is not None:
                figures = (spread_text(a[measured], ".1f"), spread_text(b[measured], ".1f"))
                words = (pair.label or "all", _label(measured, both), in_words(measured.figure))
                rows.append((*words, *figures, f"{second - first:+.1f}"))
    return rows


def _label(measured: Measured, among: Sequence[Measured]) -> str:
    """Return e.g. "Linear classifier, shapes, teacher, last checkpoint" and what differs from `among`."""
    named = measured._replace(circumstances=frozenset())
    alike = [each.circumstances for each in among if each._replace(circumstances=frozenset()) == named]
    apart = sorted(measured.circumstances - frozenset.intersection(*alike))
    checkpoint = f"{measured.checkpoint} checkpoint" if measured.checkpoint else ""
    parts = [title(measured.evaluation), measured.data, measured.network, checkpoint]
    return ", ".join([part for part in parts if part] + [f"{key} = {value}" for key, value in apart])


def _figures(runs: Sequence[RunData]) -> dict[Measured, list[float | None]]:
    """Return the newest value of each run, by figure."""
    found: dict[Measured, list[float | None]] = {}
    for run in runs:
        newest: dict[Measured, float | None] = {}
        for result in by_evaluation(run.evaluations):
            for figure, value in result.figures.items():
                newest.setdefault(_measured(result, figure), value)
        for measured, value in newest.items():
            found.setdefault(measured, []).append(value)
    return found


def _measured(result: Result, figure: str) -> Measured:
    circumstances = frozenset(item for item in result.circumstances.items() if item[0] != "weights")
    return Measured(result.evaluation, result.network, result.checkpoint, result.data, circumstances, figure)
