"""The figures of a search for a boundary: probability of training, runs, boundary and the next run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
from contourpy import contour_generator

from dino_exp.plots.drawing import QUIET, Figure, Row, to_spec
from dino_exp.report.verdicts import OUTCOMES, outcome_of
from launchers.boundary.boundary_axis import Axis
from launchers.boundary.boundary_file import Boundary, Tried, read_boundaries

LEVELS = {0.5: "boundary", 0.05: "its uncertainty, 90 %", 0.95: "its uncertainty, 90 %"}
"""Probabilities that most seeds train, whose contours are drawn."""
NEXT = "the next run"
WIDTH, HEIGHT = 380, 320


def boundary_figures(folder: Path, problems: list[str]) -> list[tuple[Figure, list[str]]]:
    """Return the maps of a folder's searches, each with the boundary in words below the first of a search."""
    found = []
    for name, boundary in read_boundaries(folder, problems).items():
        for number, each in enumerate(boundary.maps):
            try:
                figure = _figure(
                    f"boundary_{name}_{number}" if number else f"boundary_{name}", boundary, each
                )
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
                problems.append(f"boundary.json: the map of {name} is damaged ({why}).")
                continue
            found.append((figure, [] if number else boundary.lines))
        if boundary.end and not boundary.maps:
            problems.append(f"Boundary: {boundary.end}.")
    return found


def _figure(name: str, boundary: Boundary, map_data: dict[str, Any]) -> Figure:
    x, y, *third = boundary.axes
    runs = [run for run in boundary.inside() if run.trains is not None and _near(run, third, map_data["at"])]
    cells, lines = _cells(x, y, map_data["probability"]), _contours(map_data["side"])
    marks = [_mark(run, x, y) for run in runs]
    marks += [
        {"x": x.position(run[x.key]), "y": y.position(run[y.key]), "word": NEXT, "label": NEXT}
        for run in boundary.next
    ]
    words = [word for word in OUTCOMES if any(mark["word"] == word for mark in marks)]
    shapes = [outcome_of(word).shape for word in words]
    if boundary.next:
        words, shapes = [*words, NEXT], [*shapes, "cross"]
    legend = alt.Legend(orient="bottom", direction="horizontal", columns=3, symbolSize=90)
    left, bottom = _scale("x1:Q", alt.X, x), _scale("y1:Q", alt.Y, y)
    over_cells = (
        alt.Chart(alt.NamedData("map"))
        .mark_rect(aria=False)
        .encode(
            x=left,
            x2="x2:Q",
            y=bottom,
            y2="y2:Q",
            color=alt.Color(
                "probability:Q",
                title="probability of training",
                scale=alt.Scale(scheme="viridis", domain=[0, 1]),
                legend=alt.Legend(
                    orient="top", gradientLength=220, format=".2~f", values=[0, 0.25, 0.5, 0.75, 1]
                ),
            ),
            tooltip=[
                alt.Tooltip("at:N", title=f"{x.key}, {y.key}"),
                alt.Tooltip("probability:Q", title="probability of training", format=".2f"),
            ],
        )
    )
    dashes = alt.Scale(domain=list(dict.fromkeys(LEVELS.values())), range=[[1, 0], [4, 4]])
    over_lines = (
        alt.Chart(alt.NamedData("lines"))
        .mark_line(color="white", strokeWidth=2.5, aria=False, clip=True)
        .encode(
            x=_scale("x:Q", alt.X, x),
            y=_scale("y:Q", alt.Y, y),
            order="order:Q",
            detail="line:N",
            strokeDash=alt.StrokeDash(
                "what:N",
                title=None,
                scale=dashes,
                legend=alt.Legend(orient="bottom", symbolStrokeColor=QUIET, symbolType="stroke"),
            ),
        )
    )
    over_marks = (
        alt.Chart(alt.NamedData("marks"))
        .mark_point(size=90, fill="white", stroke="black", strokeWidth=1.2, opacity=1, aria=False, clip=False)
        .encode(
            x=_scale("x:Q", alt.X, x),
            y=_scale("y:Q", alt.Y, y),
            shape=alt.Shape("word:N", title=None, scale=alt.Scale(domain=words, range=shapes), legend=legend),
            tooltip=alt.Tooltip("label:N", title="run"),
        )
    )
    chart = alt.layer(over_cells, over_lines, over_marks).properties(width=WIDTH, height=HEIGHT)
    chart = chart.resolve_scale(color="independent", shape="independent")
    at = f" at {third[0].key} = {third[0].text(map_data['at'])}" if third else ""
    return Figure(
        name,
        f"Where training works{at}",
        to_spec(chart, {"map": cells, "lines": lines, "marks": marks}),
        f"Probability that a run trains over {x.key} and {y.key}{at}, with {len(runs)} runs. "
        + " ".join(f"{line}." for line in boundary.lines),
        [*(axis.key for axis in boundary.axes), "seed", "verdict"],
        [
            [*(f"{run.values[axis.key]:g}" for axis in boundary.axes), _seed(run), run.verdict]
            for run in sorted(runs, key=lambda run: [run.values[axis.key] for axis in boundary.axes])
        ],
        note="On the solid line as many seeds train as collapse; with a probability of 90 % it is between "
        f"the dashed ones. {'Runs near this value are shown. ' if third else ''}Small pieces of a ragged "
        "boundary are not resolved.",
    )


def _near(run: Tried, third: Sequence[Axis], at: float | None) -> bool:
    """Return whether a run is shown on the map at a value of the third axis: the nearest of four."""
    if not third or at is None:
        return True
    axis = third[0]
    return abs(axis.position(run.values[axis.key]) - axis.position(at)) <= 1 / 6 + 1e-9


def _mark(run: Tried, x: Axis, y: Axis) -> Row:
    values = " ".join(f"{key}={value:g}" for key, value in run.values.items())
    label = f"{values}{'' if run.seed is None else f' seed {run.seed}'}: {run.verdict}"
    place = {"x": x.position(run.values[x.key]), "y": y.position(run.values[y.key])}
    return {**place, "word": run.verdict, "label": label}


def _seed(run: Tried) -> str:
    return "that of all" if run.seed is None else str(run.seed)


def _cells(x: Axis, y: Axis, probability: Sequence[Sequence[float]]) -> list[Row]:
    rows, columns = len(probability), len(probability[0])
    return [
        {
            "x1": column / columns,
            "x2": (column + 1) / columns,
            "y1": row / rows,
            "y2": (row + 1) / rows,
            "probability": float(value),
            "at": f"{x.text(x.value((column + 0.5) / columns))}, {y.text(y.value((row + 0.5) / rows))}",
        }
        for row, values in enumerate(probability)
        for column, value in enumerate(values)
    ]


def _contours(side: Sequence[Sequence[float]]) -> list[Row]:
    rows, columns = len(side), len(side[0])
    at = [(column + 0.5) / columns for column in range(columns)], [(row + 0.5) / rows for row in range(rows)]
    generator: Any = contour_generator(*at, side)
    return [
        {"x": float(px), "y": float(py), "order": order, "line": f"{level}-{number}", "what": what}
        for level, what in LEVELS.items()
        for number, line in enumerate(generator.lines(level))
        for order, (px, py) in enumerate(line)
    ]


def _scale(field: str, channel: Any, axis: Axis) -> Any:
    """Return an axis of positions from 0 to 1 whose labels are values."""
    ticks = axis.ticks()
    positions = [round(axis.position(tick), 6) for tick in ticks]
    texts = ", ".join(f"'{axis.text(tick)}'" for tick in ticks)
    near = "abs(datum.value - {}) < 1e-4 ? [{}][{}] : "  # values come back rounded
    label = "".join(near.format(position, texts, index) for index, position in enumerate(positions))
    shown = alt.Axis(values=positions, labelExpr=f"{label}''", grid=False)
    return channel(field, title=axis.key, scale=alt.Scale(domain=[0, 1], nice=False), axis=shown)
