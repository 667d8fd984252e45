"""Curves of all runs of a sweep as small multiples: a panel for each cell of the phase diagram."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import altair as alt

from dino_exp.metrics import DIVERGENCE, ENTROPY, INFORMATION, KNN, LN_K, LOSS
from dino_exp.plots.drawing import QUIET, Figure, Row, number_text, to_spec
from dino_exp.report.run_data import RunData, SweepData
from dino_exp.report.sweep.cells import Cell, gather, pairs, short, spread
from dino_exp.report.verdicts import KINDS, outcome_of
from dino_exp.runs.run_files import number

STEPS = alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=3)
KIND_COLORS = alt.Scale(domain=list(KINDS), range="ordinal")
ROWS = {"loss": LOSS, "entropy": ENTROPY, "kl": DIVERGENCE, "mi": INFORMATION, "knn": KNN}
"""Metrics by the names that the curves have in files; the loss as a share of ln K."""
CURVES = {name: row.title for name, row in ROWS.items()}
PANEL, HEIGHT = 128, 84
"""Width and height of a panel in pixels."""
RANGE_IN_TWO_LINES = "split(replace(datum.label, ' – ', ' –|'), '|')"
"""The label of a range where there is no room for one line."""
MOST_TICKS, RANGES = 10, 8
"""Values and ranges of an axis, so that there are at most a hundred panels."""


def of_each_metric(curves: Figure) -> list[Figure]:
    """Return the small multiples as a figure for each metric that the page lets readers choose."""
    (chosen,) = curves.spec["params"]
    figures = []
    for metric in (name for name, title in CURVES.items() if title in curves.columns):
        name = curves.name if metric == chosen["value"] else f"{curves.name}_{metric}"
        spec = {**curves.spec, "params": [chosen | {"value": metric}]}
        figures.append(replace(curves, name=name, title=f"{curves.title}: {CURVES[metric]}", spec=spec))
    return figures


def small_multiples(sweep: SweepData) -> Figure | None:
    """Return the curves of all runs, a panel for each cell; None if nothing was logged."""
    x, y = next(iter(pairs(sweep)), (None, None))
    cells = [Cell("all runs", "", 0, 0, sweep.runs)]
    if x:
        cells = gather(sweep, x, y, most=MOST_TICKS, ranges=RANGES)
    indices = {id(run): index for index, run in enumerate(sweep.runs)}
    rows = [row for cell in cells for run in cell.runs for row in _curve_rows(run, indices[id(run)], cell)]
    shown = [name for name in CURVES if any(row[name] is not None for row in rows)]
    if not shown:
        return None
    if y:
        rows += _empty_panels(cells)
    metric = alt.param(name="metric", value="entropy" if "entropy" in shown else shown[0])
    curves = alt.Chart(alt.NamedData("curves"))
    lines = (
        curves.transform_calculate(value="datum[metric]")
        .transform_filter("isValid(datum.value)")
        .mark_line(strokeWidth=1.6, aria=False, clip=True)
        .encode(
            x=alt.X("step:Q", title=None, axis=STEPS),
            y=alt.Y("value:Q", title=None, axis=alt.Axis(tickCount=3)),
            color=alt.Color("kind:N", title=None, scale=KIND_COLORS, legend=kinds_legend(sweep)),
            strokeDash=alt.StrokeDash(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=list(KINDS), range=[[1, 0], [8, 3], [4, 3], [2, 2]]),
            ),
            detail="run:N",
            tooltip=[alt.Tooltip("label:N", title="run"), alt.Tooltip("outcome:N", title="verdict")],
        )
    )
    # without it, a cell that has no curve would have no panel
    words = (
        curves.transform_filter("datum.nothing")
        .mark_text(fontSize=10, color=QUIET, aria=False)
        .encode(x=alt.value(PANEL / 2), y=alt.value(40), text="outcome:N", detail="run:N")
    )
    panels = alt.layer(lines, words).properties(width=PANEL, height=HEIGHT)
    header = alt.Header(labelLimit=PANEL)
    upright = alt.Header(labelLimit=HEIGHT, labelExpr=RANGE_IN_TWO_LINES)
    column = alt.EncodingSortField("xi", op="min")
    if y:
        downwards = alt.EncodingSortField("yi", op="min", order="descending")
        chart = panels.facet(
            row=alt.Row("y:N", title=y, sort=downwards, header=upright),
            column=alt.Column("x:N", title=x, sort=column, header=header),
            spacing=14,
        ).add_params(metric)
    else:
        chart = panels.facet(
            facet=alt.Facet("x:N", title=x, sort=column, header=header),
            columns=min(5, len(cells)),
            spacing=14,
        ).add_params(metric)
    axes = " · ".join(short(axis) for axis in (x, y) if axis)
    panel = "{0.x} · {0.y}" if y else "{0.x}"
    steps = "evenly spaced logged steps."
    return Figure(
        "curves",
        "Curves of all runs",
        to_spec(chart, {"curves": rows}),
        f"{len(cells)} panels with the curves of {len(sweep.runs)} runs; color and dashes are the verdict.",
        ("panel", "verdict", *(CURVES[name] for name in shown)),
        [
            (panel.format(cell), cell.outcomes, *(_last_mean(cell, name) for name in shown))
            for cell in sorted(cells, key=lambda cell: (-cell.yi, cell.xi))
        ],
        renderer="canvas",
        note=f"A panel for each {axes}, with {steps}" if axes else steps.capitalize(),
    )


def _loss_share(record: dict[str, Any]) -> float | None:
    loss, ln_k = number(record.get(LOSS.key)), number(record.get(LN_K.key))
    return loss / ln_k if loss is not None and ln_k else None


def _curve_rows(run: RunData, index: int, cell: Cell) -> list[Row]:
    kind = outcome_of(run.outcome).kind
    of = {"run": index, "x": cell.x, "y": cell.y, "xi": cell.xi, "yi": cell.yi}
    of |= {"kind": kind, "label": run.label, "outcome": run.outcome}
    rows: list[Row] = []
    for record in run.metrics:
        values = {name: number(record.get(row.key)) for name, row in ROWS.items()}
        values["loss"] = _loss_share(record)
        rounded = {name: value and float(f"{value:.4g}") for name, value in values.items()}
        rows.append({**of, "step": record["step"], **rounded, "nothing": False})
    if all(row[name] is None for row in rows for name in CURVES):
        rows.append({**of, **dict.fromkeys(("step", *CURVES)), "nothing": True})
    return rows


def _empty_panels(cells: Sequence[Cell]) -> list[Row]:
    """Return a row for each cell of the grid without runs, because Vega would close the gap."""
    columns, lines = {cell.xi: cell.x for cell in cells}, {cell.yi: cell.y for cell in cells}
    taken = {(cell.xi, cell.yi) for cell in cells}
    blank = dict.fromkeys(("step", *CURVES, "run")) | {"kind": KINDS[0], "label": "", "outcome": ""}
    return [
        {"x": x, "y": y, "xi": xi, "yi": yi, **blank, "nothing": False}
        for xi, x in columns.items()
        for yi, y in lines.items()
        if (xi, yi) not in taken
    ]


def kinds_legend(sweep: SweepData) -> alt.Legend:
    """Return a legend of the kinds that the sweep has."""
    there = {outcome_of(run.outcome).kind for run in sweep.runs}
    return alt.Legend(orient="top", values=[kind for kind in KINDS if kind in there])


def _last_mean(cell: Cell, name: str) -> str:
    if name == "loss":
        values = [_loss_share({LOSS.key: run.last(LOSS.key), LN_K.key: run.ln_k}) for run in cell.runs]
    elif name == "knn":
        values = [run.knn for run in cell.runs]
    else:
        values = [run.last(ROWS[name].key) for run in cell.runs]
    return number_text(spread(values)[0], ROWS[name].form)
