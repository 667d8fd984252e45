"""The figures of a run's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.expected import bands
from dino_exp.metrics import KNN, Chart, Metric, charts, in_words
from dino_exp.plots.drawing import QUIET, Figure, Row, level_lines, number_text, to_spec
from dino_exp.report.evaluation_records import title
from dino_exp.report.loading import utc
from dino_exp.report.run_data import RunData
from dino_exp.report.thinning import Point, thinned
from dino_exp.runs.metrics_lines import evenly_spaced
from dino_exp.runs.run_directory import end_of_attempt
from dino_exp.runs.run_files import number

WIDTH, HEIGHT = 420, 210
STEPS = alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=5)
LINES = alt.Legend(orient="top", symbolType="stroke", symbolStrokeWidth=2, symbolSize=200)
EVALUATIONS_CHART = Chart("evaluations", "Evaluations during training, percent", zero=False, points=True)
ATTEMPT = {
    "attempt": "attempt",
    "began_text": "began",
    "until_text": "until",
    "from_step": "from step",
    "to_step": "to step",
    "ended": "ended",
    "job": "job",
    "host": "host",
}
"""Titles of what is shown of an attempt."""


def run_figures(run: RunData) -> tuple[list[Figure], list[str]]:
    """Return the figures of what was logged, and the titles of figures without data."""
    drawn = {chart.heading: _chart_figure(run, chart, chart.curves) for chart in charts()}
    evaluations = _chart_figure(run, EVALUATIONS_CHART, evaluation_curves(run))
    figures = [figure for figure in (*drawn.values(), evaluations) if figure]
    return figures, [heading for heading, figure in drawn.items() if figure is None]


def evaluation_curves(run: RunData) -> dict[str, str]:
    """Return the first logged figure of each evaluation during training but k-NN, as `Chart.curves`."""
    first: dict[str, str] = {}
    for key in (key for record in run.metrics for key in record if number(record[key]) is not None):
        evaluation, _, figure = key.partition("/")
        if evaluation in EVALUATIONS and figure:
            first.setdefault(evaluation, figure)
    return {f"{title(name)}: {in_words(figure)}": f"{name}/{figure}" for name, figure in first.items()}


def _chart_figure(run: RunData, chart: Chart, curves: dict[str, str]) -> Figure | None:
    """Return a figure of curves, keys by the words of the legend; None if none of the values was logged."""
    metric, level = (chart.metrics[0], _level(run, chart.metrics[0])) if chart.metrics else (KNN, None)
    series = {word: run.series(key) for word, key in curves.items()}
    series = {word: points for word, points in series.items() if any(each is not None for _, each in points)}
    if not series:
        return None
    words = list(series)
    rows = [
        {"step": step, "value": value, "of": word} for word in words for step, value in thinned(series[word])
    ]
    legend = LINES if len(words) > 1 else None
    base = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False), axis=STEPS),
        y=alt.Y("value:Q", title=metric.unit or None, scale=alt.Scale(zero=chart.zero)),
        color=alt.Color("of:N", title=None, scale=alt.Scale(domain=words), legend=legend),
        tooltip=[
            alt.Tooltip("of:N", title="curve"),
            alt.Tooltip("step:Q", format=","),
            alt.Tooltip("value:Q", title=chart.heading, format=metric.precise),
        ],
    )
    # Dashes distinguish curves without color.
    dashes = alt.Scale(domain=words, range=[[1, 0], [6, 3], [2, 2]][: max(2, len(words))])
    size, opacity = (45, 1) if chart.points else (90, 0)
    chart_layers = [
        base.mark_line(strokeWidth=2, tooltip=False, aria=False).encode(
            strokeDash=alt.StrokeDash("of:N", title=None, scale=dashes, legend=legend)
        ),
        base.mark_point(filled=True, size=size, opacity=opacity, aria=False),
        *(level_lines() if level else []),
    ]
    datasets: dict[str, list[Row]] = {"points": rows}
    band = expected_band(run) if metric is KNN and chart.metrics else []
    if band:
        datasets["expected"] = band
        chart_layers = [*expected_layers(), *chart_layers]
    if level:
        datasets["level"] = [dict(zip(("value", "text"), level, strict=True))]
    return Figure(
        chart.name,
        chart.heading,
        to_spec(alt.layer(*chart_layers).properties(width=WIDTH, height=HEIGHT), datasets),
        _in_words(series, chart.heading, metric.precise, level) + _band_in_words(run, band),
        ("step", *words),
        _table(series, metric.precise),
    )


def expected_band(run: RunData) -> list[Row]:
    """Return what is expected of the run's k-NN, by step; empty if nothing is."""
    total = run.total_steps or 0
    return [
        {"step": band.share * total, "low": band.low, "high": band.high}
        for band in bands(run.config.get("expected"))
        if total
    ]


def expected_layers() -> list[alt.Chart]:
    """Return the band of the data set `expected`: a bar at each of its places, and the area between them."""
    base = alt.Chart(alt.NamedData("expected")).encode(x="step:Q", y="low:Q", y2="high:Q")
    color = alt.value(QUIET)
    return [
        base.mark_area(opacity=0.2, aria=False).encode(color=color),
        base.mark_rule(strokeWidth=4, opacity=0.45, aria=False).encode(color=color),
    ]


def _band_in_words(run: RunData, band: list[Row]) -> str:
    if not band:
        return ""
    last = band[-1]
    return (
        f" Band: what experiment={run.config['expected'].get('experiment')} reached, "
        f"{last['low']:.1f} to {last['high']:.1f} at step {last['step']:,.0f}."
    )


def _level(run: RunData, metric: Metric) -> tuple[float, str] | None:
    """Return the line that a figure is read against, if it has one above zero."""
    if metric is KNN and run.untrained_knn is not None:
        return run.untrained_knn, f"untrained: {KNN.text(run.untrained_knn)}"
    for level in metric.levels:
        value = run.last(level.value) if isinstance(level.value, str) else level.value
        if value:
            return value, level.text(value)
    return None


def _in_words(series: dict[str, list[Point]], title: str, form: str, level: tuple[float, str] | None) -> str:
    sentences = []
    for word, points in series.items():
        known = [(step, value) for step, value in points if value is not None]
        (first, begin), (last, end) = known[0], known[-1]
        low, high = min(value for _, value in known), max(value for _, value in known)
        sentences.append(
            f"{word} from {begin:{form}} at step {first:,} to {end:{form}} at step {last:,}, "
            f"between {low:{form}} and {high:{form}}"
        )
    return f"{title}: {'; '.join(sentences)}." + (f" Line at {level[1]}." if level else "")


def _table(series: dict[str, list[Point]], form: str) -> list[Sequence[str]]:
    """Return a few evenly spaced steps."""
    values: dict[int, dict[str, float | None]] = {}
    for word, points in series.items():
        for step, value in points:
            values.setdefault(step, {})[word] = value
    every = sorted(values)
    steps = [every[index] for index in evenly_spaced(len(every), 14)]
    return [(f"{step:,}", *(number_text(values[step].get(word), form) for word in series)) for step in steps]


def timeline(run: RunData) -> Figure | None:
    """Return the attempts on a time line; None if none is recorded."""
    rows = attempts(run)
    drawn = [row for row in rows if row["began"] is not None]
    if not drawn:
        return None
    points = [
        {**row, "began": row["began"] * 1000, "until": (row["until"] or row["began"]) * 1000} for row in drawn
    ]
    base = alt.Chart(alt.NamedData("attempts")).encode(
        x=alt.X(
            "began:T",
            title="UTC",
            scale=alt.Scale(type="utc"),
            axis=alt.Axis(tickCount=4, format="%d %b %H:%M", labelOverlap=True),
        ),
        y=alt.Y("attempt:O", title="attempt"),
        tooltip=[alt.Tooltip(f"{key}:N", title=title) for key, title in ATTEMPT.items()],
    )
    chart = alt.layer(
        base.mark_bar(height=16, color="#7f8a99").encode(x2="until:T"),
        # a short attempt would be too narrow to see
        base.mark_point(shape="stroke", size=200, angle=90, strokeWidth=2, color="#7f8a99"),
        base.mark_text(align="left", dx=6, dy=0, aria=False).encode(x="until:T", text="ended:N"),
    )
    return Figure(
        "attempts",
        "Attempts",
        to_spec(chart.properties(width=WIDTH * 2, height=26 * len(points)), {"attempts": points}),
        f"{len(rows)} attempts, from {rows[0]['began_text']} to {rows[-1]['until_text']}.",
        tuple(ATTEMPT.values()),
        [[str(row[key]) for key in ATTEMPT] for row in rows],
    )


def attempts(run: RunData) -> list[dict[str, Any]]:
    """Return the attempts in a run's status; the last lasts until the last sign of life."""
    recorded = run.status.get("attempts")
    recorded = [each for each in recorded if isinstance(each, dict)] if isinstance(recorded, list) else []
    rows = []
    for index, attempt in enumerate(recorded):
        last = index == len(recorded) - 1
        began = number(attempt.get("began"))
        until = number(attempt.get("until")) or (number(end_of_attempt(run.status)) if last else None)
        to_step = attempt.get("to_step", run.step if last else None)
        following = None if last else recorded[index + 1].get("from_step")
        rows.append(
            {
                "attempt": index + 1,
                "began": began,
                "until": until,
                "began_text": utc(began) or "–",
                "until_text": utc(until) or "–",
                "to_step": _text(to_step),
                "ended": run.state if last else _how_ended(to_step, following),
                **{key: _text(attempt.get(key)) for key in ("from_step", "job", "host")},
            }
        )
    return rows


def _how_ended(to_step: Any, following: Any) -> str:
    """Return how an attempt ended that was followed by another: saved, or with steps lost."""
    if to_step is None or following is None:
        return "–"
    return "saved" if following == to_step else f"stopped without saving; resumed from step {following}"


def _text(value: Any) -> str:
    return "–" if value is None else str(value)
