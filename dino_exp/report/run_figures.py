"""The figures of a run's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from dino_exp.metrics import KNN, Chart, Metric, charts
from dino_exp.plots.drawing import Figure, Row, number_text, to_spec
from dino_exp.report.loading import utc
from dino_exp.report.run_data import RunData
from dino_exp.report.run_files import number
from dino_exp.report.thinning import thinned

WIDTH, HEIGHT = 420, 210
STEPS = alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=5)
LINES = alt.Legend(orient="top", symbolType="stroke", symbolStrokeWidth=2, symbolSize=200)


def run_figures(run: RunData) -> tuple[list[Figure], list[str]]:
    """Return the figures of what was logged, and the titles of figures without data."""
    figures, absent = [], []
    for chart in charts():
        figure = chart_figure(run, chart)
        if figure is None:
            absent.append(chart.heading)
        else:
            figures.append(figure)
    return figures, absent


def chart_figure(run: RunData, chart: Chart) -> Figure | None:
    """Return a figure; None if none of its values was logged."""
    first, title = chart.metrics[0], chart.heading
    series = {word: run.series(key) for word, key in chart.curves.items()}
    series = {
        word: points for word, points in series.items() if any(value is not None for _, value in points)
    }
    if not series:
        return None
    words = list(series)
    rows = [
        {"step": step, "value": value, "of": word} for word in words for step, value in thinned(series[word])
    ]
    level = _level(run, first)
    base = alt.Chart(alt.NamedData("points")).encode(
        x=alt.X("step:Q", title="step", scale=alt.Scale(nice=False), axis=STEPS),
        y=alt.Y("value:Q", title=first.unit or None, scale=alt.Scale(zero=chart.zero)),
        color=alt.Color(
            "of:N", title=None, scale=alt.Scale(domain=words), legend=LINES if len(words) > 1 else None
        ),
        tooltip=[
            alt.Tooltip("of:N", title="curve"),
            alt.Tooltip("step:Q", format=","),
            alt.Tooltip("value:Q", title=title, format=first.precise),
        ],
    )
    # Dashes distinguish two curves without color.
    dashes = alt.StrokeDash(
        "of:N",
        title=None,
        scale=alt.Scale(domain=words, range=[[1, 0], [6, 3]]),
        legend=LINES if len(words) > 1 else None,
    )
    layers: list[alt.Chart] = [
        base.mark_line(strokeWidth=2, tooltip=False, aria=False).encode(strokeDash=dashes),
        base.mark_point(
            filled=True, size=45 if chart.points else 90, opacity=1 if chart.points else 0, aria=False
        ),
    ]
    datasets: dict[str, list[Row]] = {"points": rows}
    if level is not None:
        datasets["level"] = [{"value": level[0], "text": level[1]}]
        line = alt.Chart(alt.NamedData("level")).encode(y="value:Q")
        layers.append(line.mark_rule(strokeDash=[3, 3], aria=False))
        layers.append(
            line.mark_text(align="right", dx=-4, dy=-6, fontSize=11, aria=False).encode(
                text="text:N", x=alt.value("width")
            )
        )
    return Figure(
        chart.name,
        title,
        to_spec(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), datasets),
        _in_words(series, title, first.precise, level),
        ("step", *words),
        _table(series, first.precise),
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


def _in_words(
    series: dict[str, list[tuple[int, float | None]]], title: str, form: str, level: tuple[float, str] | None
) -> str:
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


def _table(
    series: dict[str, list[tuple[int, float | None]]], form: str, most: int = 14
) -> list[Sequence[str]]:
    """Return a few evenly spaced steps."""
    values: dict[int, dict[str, float | None]] = {}
    for word, points in series.items():
        for step, value in points:
            values.setdefault(step, {})[word] = value
    steps = sorted(values)
    if len(steps) > most:
        steps = sorted({steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)})
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
        tooltip=[
            alt.Tooltip("attempt:O"),
            alt.Tooltip("began_text:N", title="began"),
            alt.Tooltip("until_text:N", title="until"),
            alt.Tooltip("from_step:N", title="from step"),
            alt.Tooltip("to_step:N", title="to step"),
            alt.Tooltip("ended:N"),
            alt.Tooltip("job:N"),
            alt.Tooltip("host:N"),
        ],
    )
    chart = alt.layer(
        base.mark_bar(height=16, color="#7f8a99").encode(x2="until:T"),
        # a short attempt would be too narrow to see
        base.mark_point(shape="stroke", size=200, angle=90, strokeWidth=2, color="#7f8a99"),
        base.mark_text(align="left", dx=6, dy=0, aria=False).encode(x="until:T", text="ended:N"),
    )
    table: list[Sequence[str]] = [
        (
            str(row["attempt"]),
            row["began_text"],
            row["until_text"],
            row["from_step"],
            row["to_step"],
            row["ended"],
            row["job"],
            row["host"],
        )
        for row in rows
    ]
    return Figure(
        "attempts",
        "Attempts",
        to_spec(chart.properties(width=WIDTH * 2, height=26 * len(points)), {"attempts": points}),
        f"{len(rows)} attempts, from {rows[0]['began_text']} to {rows[-1]['until_text']}.",
        ("attempt", "began", "until", "from step", "to step", "ended", "job", "host"),
        table,
    )


def attempts(run: RunData) -> list[dict[str, Any]]:
    """Return the attempts in a run's status; the last lasts until the last heartbeat."""
    recorded = run.status.get("attempts")
    recorded = [each for each in recorded if isinstance(each, dict)] if isinstance(recorded, list) else []
    rows = []
    for index, attempt in enumerate(recorded):
        last = index == len(recorded) - 1
        until = number(attempt.get("until")) or (number(run.status.get("heartbeat")) if last else None)
        to_step = attempt.get("to_step", run.step if last else None)
        following = None if last else recorded[index + 1].get("from_step")
        rows.append(
            {
                "attempt": index + 1,
                "began": number(attempt.get("began")),
                "until": until,
                "began_text": utc(number(attempt.get("began"))) or "–",
                "until_text": utc(until) or "–",
                "from_step": _text(attempt.get("from_step")),
                "to_step": _text(to_step),
                "ended": run.state if last else _how_ended(to_step, following),
                "job": _text(attempt.get("job")),
                "host": _text(attempt.get("host")),
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
