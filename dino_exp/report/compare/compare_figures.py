"""Figures and page of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import altair as alt

from dino_exp.atomic import write_text_atomically
from dino_exp.metrics import ENTROPY, INFORMATION, KNN, LOSS, Chart, charts
from dino_exp.plots.drawing import Figure, Row, level_lines, number_text, to_spec, write_files
from dino_exp.plots.html_page import render
from dino_exp.report.compare.compare_evaluations import evaluation_rows
from dino_exp.report.compare.comparison import (
    Comparison,
    Pair,
    answer,
    common_differences,
    difference_text,
    knn,
    pair_row,
)
from dino_exp.report.page import PAGE, page_link
from dino_exp.report.run_data import SEED, RunData
from dino_exp.report.run_figures import LINES
from dino_exp.report.sweep.cells import short
from dino_exp.report.thinning import Point, thinned
from dino_exp.report.values import value_text
from dino_exp.runs.run_files import number

WIDTH, HEIGHT = 420, 210
SIDES = ["A", "B"]
COLORS = alt.Color("side:N", title=None, scale=alt.Scale(domain=SIDES), legend=LINES)
DASHES = alt.StrokeDash(
    "side:N", title=None, scale=alt.Scale(domain=SIDES, range=[[1, 0], [6, 3]]), legend=LINES
)
AXIS = alt.Axis(labelExpr="format(datum.value, '~s')", tickCount=4)
MOST_PANELS = 30
SMALL_PANELS = {"knn": KNN, "entropy": ENTROPY, "mutual_information": INFORMATION, "loss": LOSS}
"""Metrics of the small panels; the loss there as a share of ln K, because K may differ."""


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the page and its figures into `folder`, and return their paths, the page first."""
    folder.mkdir(parents=True, exist_ok=True)
    differences, curves = knn_differences(comparison), curve_figures(comparison)
    figures = [figure for figure in (differences, *curves) if figure]
    common, rest = common_differences(comparison)
    links = [page_link(path, folder) for path in (comparison.a, comparison.b)]
    text = render(
        "compare.html",
        figures,
        None,
        comparison=comparison,
        sides=list(zip(SIDES, comparison.names, links, strict=True)),
        sentences=answer(comparison),
        rows=[(pair_row(pair), _links(pair.a, folder), _links(pair.b, folder)) for pair in comparison.pairs],
        worth=evaluation_rows(comparison),
        differences=differences,
        curves=curves,
        common=common,
        rest=rest,
    )
    paths = [path for figure in figures for path in write_files(figure, folder)]
    page = folder / PAGE
    write_text_atomically(page, text)
    return [page, *paths]


def _links(runs: Sequence[RunData], folder: Path) -> list[tuple[str, str, str]]:
    """Return the text, title and target of a link to each run."""
    words = [f"seed {value_text(run.values[SEED])}" if SEED in run.values else "run" for run in runs]
    return [(word, run.name, page_link(run.path, folder)) for word, run in zip(words, runs, strict=True)]


def curve_figures(comparison: Comparison) -> list[Figure]:
    """Return all curves of a single pair, or for several pairs the main curves in a panel per pair."""
    both = comparison.both
    by_step = same_batch(both)
    if len(both) == 1:
        found = [_curves(both[0], curves, by_step) for curves in charts()]
    else:
        found = [_panels(both, name, by_step) for name in SMALL_PANELS] if both else []
    return [figure for figure in found if figure]


def same_batch(pairs: list[Pair]) -> bool:
    """Return whether a step has as many images in all runs; otherwise the x axis is images seen."""
    runs = [run for pair in pairs for run in (*pair.a, *pair.b)]
    sizes = {images / step for run in runs for step, images in run.series("images")[-1:] if images and step}
    return len({round(size) for size in sizes}) <= 1


def _points(run: RunData, key: str, by_step: bool) -> list[Point]:
    """Return step or images seen, and the value there."""
    where = "step" if by_step else "images"
    known = [(number(record.get(where)), record[key]) for record in run.metrics if key in record]
    return thinned([(int(at), number(value)) for at, value in known if at is not None])


def _rows(pair: Pair, key: str, by_step: bool, share: bool = False) -> list[Row]:
    """Return the points of all runs of a pair; with `share`, values as shares of ln K."""
    return [
        {
            "at": at,
            "value": value * (1 / (run.ln_k or 1.0) if share else 1.0),
            "side": side,
            "run": _run_name(run, side),
        }
        for side, runs in zip(SIDES, (pair.a, pair.b), strict=True)
        for run in runs
        for at, value in _points(run, key, by_step)
        if value is not None
    ]


def _run_name(run: RunData, side: str) -> str:
    seed = run.config.get("trainer", {}).get("seed") if run.config else run.values.get("trainer.seed")
    return f"{side}: {run.label}" + (f", seed {value_text(float(seed))}" if isinstance(seed, int) else "")


def _lines(by_step: bool, title: str | None, form: str, zero: bool) -> alt.Chart:
    return (
        alt.Chart(alt.NamedData("points"))
        .mark_line(strokeWidth=2, opacity=0.85, aria=False, clip=True)
        .encode(
            x=alt.X("at:Q", title=_x_title(by_step), scale=alt.Scale(nice=False), axis=AXIS),
            y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=zero)),
            color=COLORS,
            strokeDash=DASHES,
            detail="run:N",
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("at:Q", title=_x_title(by_step), format=","),
                alt.Tooltip("value:Q", format=form),
            ],
        )
    )


def _x_title(by_step: bool) -> str:
    return "step" if by_step else "images seen"


def _curves(pair: Pair, curves: Chart, by_step: bool) -> Figure | None:
    """Return a metric of both teachers, or None if a schedule is the same or nothing was logged."""
    metric = curves.metrics[0]
    rows = _rows(pair, metric.key, by_step)
    if not rows or (curves.schedule and _same(pair, metric.key)):
        return None
    layers: list[alt.Chart] = [_lines(by_step, metric.unit or None, metric.precise, curves.zero)]
    datasets: dict[str, list[Row]] = {"points": rows}
    if curves.points:
        layers.append(layers[0].mark_point(filled=True, size=45, aria=False))
    if curves.name == "loss":
        datasets["level"] = list(_uniform(pair))
        layers += level_lines()
    title = curves.heading + (" of the teacher" if "student" in curves.curves else "")
    table = []
    for side in SIDES:
        if of_side := [row for row in rows if row["side"] == side]:
            values = [row["value"] for row in of_side if row["at"] == of_side[-1]["at"]]
            number_of_runs = str(len({row["run"] for row in of_side}))
            table.append((side, number_of_runs, number_text(sum(values) / len(values), metric.precise)))
    words = [f"{side} ends at {mean}" for side, _, mean in table]
    return Figure(
        f"compare_{curves.name}",
        title,
        to_spec(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), datasets),
        f"{title}: {'; '.join(words)}.",
        ("", "runs", "at the end"),
        table,
        renderer="svg" if len(rows) < 1500 else "canvas",
    )


def _same(pair: Pair, key: str) -> bool:
    """Return whether a schedule has the same values at all steps that both sides logged."""
    a, b = (dict(runs[0].series(key)) for runs in (pair.a, pair.b))
    return all(math.isclose(a[step] or 0.0, b[step] or 0.0, rel_tol=1e-6) for step in a.keys() & b.keys())


def _uniform(pair: Pair) -> Iterator[Row]:
    """Yield ln K of both sides, once if it is the same."""
    known: dict[float, list[str]] = {}
    for side, runs in zip(SIDES, (pair.a, pair.b), strict=True):
        ln_k = next((run.ln_k for run in runs if run.ln_k), None)
        if ln_k:
            known.setdefault(round(ln_k, 6), []).append(side)
    for ln_k, sides in known.items():
        of = "" if len(known) == 1 else f" of {' and '.join(sides)}"
        yield {"value": ln_k, "text": f"ln K = {ln_k:.3f}{of}"}


def _panel(pair: Pair) -> str:
    """Return the values of a pair's settings; `_keys` has the names."""
    return " · ".join(value_text(value) for _, value in pair.settings)


def _keys(pairs: Sequence[Pair]) -> str:
    """Return the names of the settings."""
    return " · ".join(short(key) for key, _ in pairs[0].settings)


def _panels(pairs: list[Pair], name: str, by_step: bool) -> Figure | None:
    """Return a small panel per pair, or None if nothing was logged."""
    title, key = SMALL_PANELS[name].title, SMALL_PANELS[name].key
    rows = [
        {**row, "pair": _panel(pair), "index": index}
        for index, pair in enumerate(pairs[:MOST_PANELS])
        for row in _rows(pair, key, by_step, share=name == "loss")
    ]
    if not rows:
        return None
    lines = _lines(by_step, None, ".4g", zero=name not in ("knn", "loss")).encode(
        x=alt.X("at:Q", title=None, axis=AXIS), y=alt.Y("value:Q", title=None, axis=alt.Axis(tickCount=3))
    )
    by_index, header = alt.EncodingSortField("index", op="min"), alt.Header(labelLimit=150)
    facet = alt.Facet("pair:N", title=None, sort=by_index, header=header)
    chart = lines.properties(width=128, height=84).facet(facet=facet, columns=5, spacing=14)
    cut = f" The first {MOST_PANELS} of {len(pairs)}." if len(pairs) > MOST_PANELS else ""
    return Figure(
        f"compare_{name}",
        title,
        to_spec(chart, {"points": rows}),
        f"{title} of A and B, a panel for each of {min(len(pairs), MOST_PANELS)} pairs.",
        renderer="canvas",
        note=f"A panel for each {_keys(pairs)}, over the {'steps' if by_step else 'images seen'}.{cut}",
    )


def knn_differences(comparison: Comparison) -> Figure | None:
    """Return B − A of each pair, with twice its standard error if there are seeds; None for a single pair."""
    pairs = [pair for pair in comparison.both if pair.difference is not None]
    if len(comparison.both) < 2 or not pairs:
        return None
    pairs = sorted(pairs, key=lambda pair: -(pair.difference or 0.0))
    rows: list[Row] = []
    for pair in pairs[:MOST_PANELS]:
        mean, reach = pair.difference or 0.0, 2 * (pair.standard_error or 0.0)
        n = f"{knn(pair.a)[2]} and {knn(pair.b)[2]}"
        rows.append({"of": _panel(pair), "mean": mean, "low": mean - reach, "high": mean + reach, "n": n})
    names = [row["of"] for row in rows]
    y = alt.Y("of:N", title=None, sort=names, axis=alt.Axis(labelLimit=110))
    x = alt.X(
        "low:Q",
        title="k-NN of B − k-NN of A, points",
        scale=alt.Scale(padding=8),  # so that half a point is not cut off at the edge
        axis=alt.Axis(tickCount=6),
    )
    ends = {"mean": "B − A", "low": "minus twice its standard error", "high": "plus twice its standard error"}
    tooltip = [
        alt.Tooltip("of:N", title=_keys(pairs)),
        *(alt.Tooltip(f"{key}:Q", title=title, format="+.1f") for key, title in ends.items()),
        alt.Tooltip("n:N", title="seeds"),
    ]
    base = alt.Chart(alt.NamedData("pairs")).encode(y=y, tooltip=tooltip)
    chart = alt.layer(
        alt.Chart(alt.NamedData("zero")).mark_rule(strokeDash=[3, 3], aria=False).encode(x="value:Q"),
        base.mark_rule(strokeWidth=3, aria=False).encode(x=x, x2="high:Q"),
        base.mark_point(filled=True, size=80, aria=False, color="#0072B2").encode(x="mean:Q"),
    ).properties(width=520, height=24 * len(names))
    table = [(pair.label, difference_text(pair)) for pair in pairs]
    cut = f" The first {MOST_PANELS} of {len(pairs)}; the table has all." if len(pairs) > MOST_PANELS else ""
    return Figure(
        "compare_differences",
        "k-NN of B minus k-NN of A",
        to_spec(chart, {"pairs": rows, "zero": [{"value": 0.0}]}),
        "Difference of k-NN in points: "
        + "; ".join(f"{label}: {text}" for label, text in table[:MOST_PANELS]),
        ("runs", "B − A, points"),
        table,
        note=f"A row for each {_keys(pairs)}. Bars: twice the standard error, where both sides have several "
        f"seeds.{cut}",
    )
