"""`plots/curves.png`: a run's metrics as curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from dino_exp.metrics import DIVERGENCE, ENTROPY, INFORMATION, KNN, LOSS, Metric, shown_in
from dino_exp.plots.png import DPI, GRID, INK, QUIET, save
from dino_exp.runs.run_directory import read_metrics

# Okabe and Ito's palette: distinct with every kind of color vision.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
TEACHER, STUDENT = BLUE, ORANGE
COLUMNS = 3


def plot_curves(metrics_file: Path, out: Path, *, name: str | None = None) -> bool:
    """Draw a metrics.jsonl as one PNG; False where it has no line, and no file is written.

    `name` is the first part of the title; by default the name of the file's folder, which is the run id.
    """
    metrics = read_metrics(metrics_file)
    if not metrics:
        return False
    save(curves_figure(metrics, name=name or metrics_file.resolve().parent.name), out)
    return True


def curves_figure(metrics: Sequence[Mapping[str, Any]], *, name: str) -> Figure:
    """Return a run's metrics in panels, three in a row; a panel of what was not logged says so.

    Args:
        metrics: at least one record with `step`.
        name: first part of the title.
    """
    rows = shown_in("panel")
    schedules = [row for row in rows if row.chart and row.chart.schedule]
    panels = [row for row in rows if row not in schedules]
    lines = math.ceil((len(panels) + 1) / COLUMNS)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(5.0 * COLUMNS, 4.1 * lines), dpi=DPI, facecolor="white", layout=layout)
    verdict = next((m["verdict"] for m in reversed(metrics) if m.get("verdict")), None)
    title = textwrap.fill(f"{name}: {verdict}" if verdict else name, 110)
    figure.suptitle(title, fontsize=15, color=INK, fontweight="bold")
    grid = figure.add_gridspec(lines, COLUMNS)
    for index, row in enumerate(panels):
        PANELS.get(row.key, _networks)(figure.add_subplot(grid[index]), metrics, row)
    _schedules(figure, grid[len(panels)], metrics, schedules)
    for axes in figure.axes:
        if not axes.lines:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=QUIET, fontsize=11)
    return figure


def _networks(axes: Axes, metrics: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    """Draw a metric of one or both networks, from zero."""
    _panel(axes, metric.label, metrics, metric.unit)
    if _lines(axes, metrics, metric):
        _from_zero(axes)


def _loss(axes: Axes, metrics: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    _panel(axes, metric.label, metrics)
    if _line(axes, metrics, metric.key, metric.short, TEACHER):
        _levels(axes, metrics, metric)
        axes.set_ylim(*_padded(axes))
    lost = (m["step"] for m in metrics if metric.key in m and not math.isfinite(_number(m, metric.key)))
    if (step := next(lost, None)) is not None:
        title = f"{metric.label}: not finite at step {step:,}"
        axes.set_title(title, fontsize=12, color=ORANGE, loc="left")


def _entropy(axes: Axes, metrics: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    _panel(axes, metric.label, metrics, metric.unit)
    if _lines(axes, metrics, metric):
        _levels(axes, metrics, metric)
        axes.set_ylim(-0.12, 1.12)


def _information(axes: Axes, metrics: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    """Draw the teacher's mutual information and, because their sizes are alike, the KL divergence."""
    _panel(axes, "Mutual information and KL", metrics, metric.unit)
    drawn = [
        _line(axes, metrics, metric.key, f"teacher: {metric.words}", GREEN),
        _line(axes, metrics, DIVERGENCE.key, DIVERGENCE.label, PINK),
    ]
    if any(drawn):
        high = max(_padded(axes)[1], 0.05)
        _levels(axes, metrics, metric)
        axes.set_ylim(-0.12 * high, 1.1 * high)
        _legend(axes)


def _knn(axes: Axes, metrics: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    _panel(axes, metric.label, metrics, metric.unit)
    if _lines(axes, metrics, metric, markers=("o", "s")):
        steps, values = _series(metrics, metric.key)
        if steps:
            is_untrained = steps[0] == 0 and "init_from" not in metrics[0]
            first = "untrained" if is_untrained else f"at step {steps[0]:,}"
            _level(axes, values[0], f"{first}: {values[0]:{metric.form}}")
        low, high = _padded(axes)
        axes.set_ylim(max(low, -2.0), min(high, 102.0))


PANELS = {LOSS.key: _loss, ENTROPY.key: _entropy, INFORMATION.key: _information, KNN.key: _knn}
"""What draws the panels that need more than `_networks`."""


def _schedules(
    figure: Figure, cell: SubplotSpec, metrics: Sequence[Mapping[str, Any]], schedules: Sequence[Metric]
) -> None:
    """Draw a strip each, because the values have nothing in common but the step."""
    strips = cell.subgridspec(len(schedules), 1, hspace=0.1)
    for index, (metric, color) in enumerate(zip(schedules, cycle((BLUE, GREEN, ORANGE)))):
        axes = figure.add_subplot(strips[index])
        _panel(axes, metric.label, metrics)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if _line(axes, metrics, metric.key, metric.label, color) and metric.chart and metric.chart.zero:
            _from_zero(axes)
        if index < len(schedules) - 1:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)


def _lines(
    axes: Axes, metrics: Sequence[Mapping[str, Any]], metric: Metric, markers: Sequence[str] = ("", "")
) -> bool:
    """Draw a metric of one network, or of both with a legend; False where nothing finite was logged."""
    if not metric.student_key:
        return _line(axes, metrics, metric.key, metric.short, TEACHER, markers[0])
    networks = zip(metric.keys, ("teacher", "student"), (TEACHER, STUDENT), markers, strict=True)
    drawn = [_line(axes, metrics, *network) for network in networks]
    if any(drawn):
        _legend(axes)
    return any(drawn)


def _levels(axes: Axes, metrics: Sequence[Mapping[str, Any]], metric: Metric) -> None:
    for level in metric.levels:
        values = _series(metrics, level.value)[1] if isinstance(level.value, str) else [level.value]
        for value in values[-1:]:
            _level(axes, value, level.text(value), above=value > 0)


def _panel(axes: Axes, title: str, metrics: Sequence[Mapping[str, Any]], unit: str = "") -> None:
    axes.set_title(title, fontsize=12, color=INK, loc="left")
    axes.set_xlabel("step", fontsize=10, color=INK)
    axes.set_ylabel(unit, fontsize=10, color=INK)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, colors=INK, length=3)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(QUIET)
    # The same steps in every panel, so that an event can be followed from one to the next.
    first, last = metrics[0]["step"], metrics[-1]["step"]
    margin = (last - first) * 0.02 or 1.0
    axes.set_xlim(first - margin, last + margin)


def _line(
    axes: Axes, metrics: Sequence[Mapping[str, Any]], key: str, label: str, color: str, marker: str = ""
) -> bool:
    """Draw one metric over the steps; False where no finite value of it was logged."""
    steps, values = _series(metrics, key)
    if not steps:
        return False
    if len(steps) <= 2:
        marker = marker or "o"
    axes.plot(steps, values, color=color, label=label, linewidth=1.8, marker=marker, markersize=5)
    return True


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Return steps and values of a metric, where it was logged and is finite."""
    points = [(m["step"], _number(m, key)) for m in metrics if key in m]
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _level(axes: Axes, value: float, label: str, above: bool = True) -> None:
    """Draw a dashed line across the panel, with its label above or below it."""
    axes.axhline(value, color=QUIET, linewidth=1.2, linestyle=(0, (5, 3)), label=f"_{label}")
    axes.annotate(
        label,
        (0.99, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4 if above else -4),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=9,
        color=QUIET,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1},
    )


def _padded(axes: Axes) -> tuple[float, float]:
    """Return limits that hold the panel's lines and a label above the highest."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    low, high = float(values.min()), float(values.max())
    room = (high - low) or abs(high) or 1.0
    return low - 0.08 * room, high + 0.15 * room


def _from_zero(axes: Axes) -> None:
    """Set the limits to start at zero, with room for half a line below it."""
    high = _padded(axes)[1]
    axes.set_ylim(-0.03 * abs(high), high)


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=9, framealpha=0.9, edgecolor=GRID, labelcolor=INK, loc="best")
