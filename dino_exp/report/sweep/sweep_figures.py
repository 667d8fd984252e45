"""The figures of a sweep's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from dino_exp import metrics
from dino_exp.metrics import Metric
from dino_exp.plots.drawing import CELLS, QUIET, Figure, Row, by_position, number_text, to_spec
from dino_exp.report.run_data import SEED, RunData, SweepData
from dino_exp.report.sweep.cells import Cell, gather, pairs, seed_groups, short, spread
from dino_exp.report.sweep.sweep_curves import KIND_COLORS, RANGE_IN_TWO_LINES, kinds_legend
from dino_exp.report.values import value_text
from dino_exp.report.verdicts import KINDS, OUTCOMES, outcome_of


class Measure(NamedTuple):
    """The value of a metric that a run ends with, and how a map shows it."""

    name: str
    metric: Metric
    form: str = ".2f"

    def of(self, run: RunData) -> float | None:
        """Return the value of a run; of the k-NN, only that of the trained network."""
        return run.knn if self.metric is metrics.KNN else run.last(self.metric.key)

    @property
    def title(self) -> str:
        """The title of the map."""
        return self.metric.title

    def text(self, value: float | None) -> str:
        """Return a value as the map shows it."""
        return number_text(value, self.form)

    @property
    def axis(self) -> str:
        """The title of an axis."""
        return f"{self.metric.words}, {self.metric.unit}"


KNN = Measure("knn", metrics.KNN, metrics.KNN.form)
INFORMATION = Measure("mutual_information", metrics.INFORMATION)
ENTROPY = Measure("entropy", metrics.ENTROPY)
MAPS = (KNN, INFORMATION, ENTROPY, Measure("kl", metrics.DIVERGENCE))


def measure_of(sweep: SweepData) -> Measure:
    """Return the measure of the effects: k-NN, or the mutual information if no run has a k-NN."""
    return KNN if any(run.knn is not None for run in sweep.runs) else INFORMATION


# ---- maps --------------------------------------------------------------------------------------------------


class MapData(NamedTuple):
    """The cells of the maps over one pair of axes."""

    x: str
    y: str | None
    rows: list[Row]


def measures_of(sweep: SweepData) -> list[Measure]:
    """Return the measures that some run has, k-NN first."""
    return [each for each in MAPS if any(each.of(run) is not None for run in sweep.runs)]


def map_data(sweep: SweepData) -> list[MapData]:
    """Return the cells of all maps, for each pair of axes."""
    indices = {id(run): index for index, run in enumerate(sweep.runs)}
    return [
        MapData(x, y, [_cell_row(cell, x, y, indices) for cell in gather(sweep, x, y)])
        for x, y in pairs(sweep)
    ]


def _cell_row(cell: Cell, x: str, y: str | None, indices: dict[int, int]) -> Row:
    row: Row = {"x": cell.x, "y": cell.y, "xi": cell.xi, "yi": cell.yi}
    row |= {"outcome": cell.outcome, "outcomes": cell.outcomes, "n": len(cell.runs)}
    row["runs"] = [indices[id(run)] for run in cell.runs]
    for measure in MAPS:
        mean, deviation, count = cell.mean(measure.of)
        row[measure.name] = None if mean is None else round(mean, 4)
        known = measure.text(mean)
        if deviation is not None:
            known += f" ± {deviation:{measure.form}} ({count} runs)"
        row[f"{measure.name}_text"] = known
    values = f"{x} {cell.x}" + (f", {y} {cell.y}" if y else "")
    row["label"] = f"{values}: {row['outcomes']}, k-NN {row['knn_text']}"
    return row


def maps(sweep: SweepData, data: Sequence[MapData]) -> list[Figure]:
    """Return the phase diagram, a map for each measure over the first pair of axes."""
    return [_map(sweep, data[0], measure) for measure in measures_of(sweep)] if data else []


def _map(sweep: SweepData, data: MapData, measure: Measure) -> Figure:
    low, high = domain([measure.of(run) for run in sweep.runs], measure)
    middle = low + 0.52 * (high - low)
    ends = [low + (high - low) * index / 4 for index in range(5)]
    seen = {run.outcome for run in sweep.runs} | {str(row["outcome"]) for row in data.rows}
    words = [*(word for word in OUTCOMES if word in seen), *sorted(seen - OUTCOMES.keys())]
    name = measure.name
    base = alt.Chart(alt.NamedData(CELLS)).encode(
        x=by_position(data.x, labelOverlap=False, labelLimit=60, grid=False, labelExpr=RANGE_IN_TWO_LINES),
        y=alt.Y(
            "y:N",
            title=data.y,
            sort=alt.EncodingSortField("yi", op="min", order="descending"),
            axis=alt.Axis(grid=False) if data.y else alt.Axis(labels=False, ticks=False),
        ),
    )
    known = f"isValid(datum.{name})"
    ink = (
        alt.when(f"!{known}")
        .then(alt.value(QUIET))
        .when(f"datum.{name} >= {middle}")
        .then(alt.value("black"))
        .otherwise(alt.value("white"))
    )
    tooltip = [
        alt.Tooltip("x:N", title=data.x),
        *([alt.Tooltip("y:N", title=data.y)] if data.y else []),
        alt.Tooltip("outcomes:N", title="verdict"),
        *(alt.Tooltip(f"{each.name}_text:N", title=each.metric.head) for each in MAPS),
        alt.Tooltip("n:Q", title="runs"),
    ]
    legend = alt.Legend(orient="bottom", direction="horizontal", columns=3, symbolSize=90)
    shapes = alt.Scale(domain=words, range=[outcome_of(word).shape for word in words])
    chart = alt.layer(
        base.transform_filter(known)
        .mark_rect(aria=False)
        .encode(
            color=alt.Color(
                f"{name}:Q",
                title=None,
                scale=alt.Scale(scheme="viridis", domain=[low, high], clamp=True),
                legend=alt.Legend(orient="top", gradientLength=220, format=".3~g", values=ends),
            )
        ),
        # White with a dark rim: visible on every color, and in the legend on light and dark pages.
        base.mark_point(
            size=80, yOffset=-9, aria=False, fill="white", stroke="black", strokeWidth=1.2, opacity=1
        ).encode(shape=alt.Shape("outcome:N", title=None, scale=shapes, legend=legend)),
        base.transform_calculate(number=f"{known} ? format(datum.{name}, '{measure.form}') : '–'")
        .mark_text(dy=10, fontSize=12, fontWeight="bold", aria=False)
        .encode(text="number:N", color=ink),
        # On top, so that the entire cell reacts to the pointer, clicks and the keyboard.
        base.mark_rect(stroke=QUIET, strokeWidth=0.5, cursor="pointer", fill="transparent")
        .encode(tooltip=tooltip, description="label:N")
        .properties(name="cells"),
    )
    columns = len({row["x"] for row in data.rows})
    chart = chart.properties(width=max(240, 62 * columns), height={"step": 46})
    over = f" over {data.x}" + (f" and {data.y}" if data.y else "")
    heads = {"x": data.x, "y": data.y, "outcomes": "verdict"}
    heads |= {f"{each.name}_text": each.metric.head for each in MAPS} | {"n": "runs"}
    shown = {key: head for key, head in heads.items() if head}
    return Figure(
        f"map_{name}",
        measure.title,
        to_spec(chart, {CELLS: data.rows}),
        f"{measure.title}{over}: {len(data.rows)} cells, from {measure.text(low)} to "
        f"{measure.text(high)}. The mark in a cell is the verdict.",
        list(shown.values()),
        [[str(row[key]) for key in shown] for row in data.rows],
    )


def domain(values: Sequence[float | None], measure: Measure) -> tuple[float, float]:
    """Return the ends of a color scale: shares start at 0, entropy ends at 1, k-NN spans its own range."""
    known = [value for value in values if value is not None]
    if measure is ENTROPY:
        return 0.0, 1.0
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    low = low if measure is KNN else 0.0
    return low, high if high - low > 1e-6 else low + 1.0


# ---- effect of each axis, seeds ----------------------------------------------------------------------------


def effects(sweep: SweepData) -> dict[str, Figure]:
    """Return a figure by axis, except of seeds: all runs, and their mean at each value."""
    return {axis: _effect(sweep, axis, measure_of(sweep)) for axis in sweep.axes if axis != SEED}


def _effect(sweep: SweepData, axis: str, measure: Measure) -> Figure:
    points: list[Row] = []
    means: list[Row] = []
    table = []
    for cell in gather(sweep, axis, None):
        for run in cell.runs:
            point = {"x": cell.x, "xi": cell.xi, "value": measure.of(run), "run": run.label}
            points.append({**point, "outcome": run.outcome, "kind": outcome_of(run.outcome).kind})
        mean, deviation, count = cell.mean(measure.of)
        means.append({"x": cell.x, "xi": cell.xi, "mean": mean, "n": count, "sd": measure.text(deviation)})
        table.append((cell.x, measure.text(mean), measure.text(deviation), f"{count} of {len(cell.runs)}"))
    marks = alt.Scale(domain=list(KINDS), range=["circle", "diamond", "square", "cross"])
    x = by_position(axis, labelOverlap=True, labelLimit=120)
    dots = (
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, size=55, opacity=0.75, aria=False)
        .encode(
            x=x,
            y=alt.Y("value:Q", title=measure.axis, scale=alt.Scale(zero=False)),
            color=alt.Color("kind:N", title=None, scale=KIND_COLORS, legend=kinds_legend(sweep)),
            shape=alt.Shape("kind:N", title=None, scale=marks),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("value:Q", title=measure.title, format=measure.form),
                alt.Tooltip("outcome:N", title="verdict"),
            ],
        )
    )
    ticks = (
        alt.Chart(alt.NamedData("means"))
        .mark_tick(thickness=3, size=34, color=QUIET, aria=False)
        .encode(
            x=x,
            y="mean:Q",
            tooltip=[
                alt.Tooltip("x:N", title=axis),
                alt.Tooltip("mean:Q", format=measure.form),
                alt.Tooltip("sd:N", title="standard deviation"),
                alt.Tooltip("n:Q", title="runs"),
            ],
        )
    )
    return Figure(
        f"effect_{axis.replace('/', '_')}",
        f"Effect of {axis}",
        to_spec(alt.layer(ticks, dots).properties(width=400, height=230), {"points": points, "means": means}),
        f"{measure.title} by {axis}: "
        + "; ".join(f"{row[0]}: mean {row[1]}" for row in table)
        + ". Points are runs, bars are means over all other axes.",
        (axis, "mean", "standard deviation", "runs with a value"),
        table,
        renderer="svg" if len(points) < 400 else "canvas",
    )


MOST_GROUPS = 40


def seeds(sweep: SweepData) -> Figure | None:
    """Return mean and standard deviation over seeds by the other axes; None without groups of seeds."""
    groups = seed_groups(sweep)
    if not groups:
        return None
    measure = measure_of(sweep)
    rows: list[Row] = []
    points: list[Row] = []
    table = []
    for name, runs in groups:
        mean, deviation, count = spread([measure.of(run) for run in runs])
        name = name or "all runs"
        table.append((name, measure.text(mean), measure.text(deviation), f"{count} of {len(runs)}"))
        if mean is not None:
            span = deviation or 0.0
            rows.append({"of": name, "mean": mean, "low": mean - span, "high": mean + span, "n": count})
            points += [
                {"of": name, "value": measure.of(run), "seed": value_text(run.values[SEED])} for run in runs
            ]
    rows.sort(key=lambda row: -row["mean"])
    drawn = rows[:MOST_GROUPS]
    order = [row["of"] for row in drawn]
    points = [point for point in points if point["of"] in order]
    y = alt.Y("of:N", title=None, sort=order, axis=alt.Axis(labelLimit=260))
    ends = {"mean": "mean", "low": "mean − sd", "high": "mean + sd"}
    tooltip = [
        alt.Tooltip("of:N", title="runs"),
        *(alt.Tooltip(f"{key}:Q", title=title, format=measure.form) for key, title in ends.items()),
        alt.Tooltip("n:Q", title="seeds"),
    ]
    base = alt.Chart(alt.NamedData("groups")).encode(y=y, tooltip=tooltip)
    x = alt.X("low:Q", title=measure.axis, scale=alt.Scale(zero=False))
    chart = alt.layer(
        base.mark_rule(strokeWidth=3, aria=False).encode(x=x, x2="high:Q"),
        base.mark_point(filled=True, size=80, aria=False, color="#0072B2").encode(x="mean:Q"),
        alt.Chart(alt.NamedData("points"))
        .mark_point(shape="stroke", angle=90, size=60, opacity=0.8, aria=False, color="#D55E00")
        .encode(
            y=y, x="value:Q", tooltip=[alt.Tooltip("seed:N"), alt.Tooltip("value:Q", format=measure.form)]
        ),
    ).properties(width=520, height=24 * max(1, len(drawn)))
    others = " · ".join(short(key) for key in sweep.axes if key != SEED)
    note = f"By {others}." if others else ""
    if len(rows) > MOST_GROUPS:
        note += f" The best {MOST_GROUPS} of {len(rows)}; all are in the table."
    return Figure(
        "seeds",
        "Seeds: mean ± standard deviation",
        to_spec(chart, {"groups": drawn, "points": points}),
        f"{measure.title}, mean over seeds ± standard deviation: "
        + "; ".join(f"{row[0]}: {row[1]} ± {row[2]}" for row in table[:MOST_GROUPS]),
        ("runs", "mean", "standard deviation", "seeds with a value"),
        table,
        note=note,
    )
