"""A run's metrics as curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from dino_exp.plots.png import DPI, GRID, INK, QUIET, save
from dino_exp.runs.run_directory import read_metrics

# Okabe and Ito's palette: told apart with every kind of color vision.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
TEACHER, STUDENT = BLUE, ORANGE


def plot_curves(metrics_file: Path, out: Path, *, name: str | None = None) -> bool:
    """Draw a metrics.jsonl as one PNG; without a line in it there is no image, and False is returned.

    `name` is the title's first part; by default the folder that holds the metrics, which is the run id.
    """
    metrics = read_metrics(metrics_file)
    if not metrics:
        return False
    save(curves_figure(metrics, name=name or metrics_file.resolve().parent.name), out)
    return True


def curves_figure(metrics: Sequence[Mapping[str, Any]], *, name: str) -> Figure:
    """Six panels of a run's metrics (at least one record with `step`); what was not logged says so."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(15, 8.2), dpi=DPI, facecolor="white", layout=layout)
    verdict = next((m["verdict"] for m in reversed(metrics) if m.get("verdict")), None)
    title = textwrap.fill(f"{name}: {verdict}" if verdict else name, 110)
    figure.suptitle(title, fontsize=15, color=INK, fontweight="bold")
    grid = figure.add_gridspec(2, 3)
    panels = [figure.add_subplot(grid[place]) for place in range(5)]
    _loss(panels[0], metrics)
    _entropy(panels[1], metrics)
    _divergence(panels[2], metrics)
    _center(panels[3], metrics)
    _knn(panels[4], metrics)
    _schedules(figure, grid[5], metrics)
    for axes in figure.axes:
        if not axes.lines:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", color=QUIET, fontsize=11)
    return figure


def _loss(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _panel(axes, "Loss", metrics)
    uniform = _last(metrics, "ln_k")
    if _line(axes, metrics, "loss", "loss", TEACHER):
        if uniform is not None:
            _level(axes, uniform, f"ln K = {uniform:.2f}: uniform")
        axes.set_ylim(*_padded(axes))
    lost = next((m["step"] for m in metrics if "loss" in m and not math.isfinite(_number(m, "loss"))), None)
    if lost is not None:
        axes.set_title(f"Loss: not finite at step {lost:,}", fontsize=12, color=ORANGE, loc="left")


def _entropy(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _panel(axes, "Entropy of the outputs", metrics, "share of ln K")
    drawn = [
        _line(axes, metrics, "teacher/entropy_share", "teacher", TEACHER),
        _line(axes, metrics, "student/entropy_share", "student", STUDENT),
    ]
    if any(drawn):
        _level(axes, 1.0, "1: uniform")
        _level(axes, 0.0, "0: one-hot", above=False)
        axes.set_ylim(-0.12, 1.12)
        _legend(axes)


def _divergence(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _panel(axes, "Mutual information and KL", metrics, "share of ln K")
    drawn = [
        _line(axes, metrics, "teacher/mutual_information_share", "teacher: mutual information", GREEN),
        _line(axes, metrics, "kl_share", "KL(teacher ‖ student)", PINK),
    ]
    if any(drawn):
        high = max(_padded(axes)[1], 0.05)
        _level(axes, 0.0, "mutual information 0: collapse", above=False)
        axes.set_ylim(-0.12 * high, 1.1 * high)
        _legend(axes)


def _center(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _panel(axes, "Norm of the center", metrics)
    if _line(axes, metrics, "center_norm", "center", TEACHER):
        _from_zero(axes)


def _knn(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> None:
    _panel(axes, "k-NN top-1", metrics, "percent")
    drawn = [
        _line(axes, metrics, "knn_top1", "teacher", TEACHER, marker="o"),
        _line(axes, metrics, "student_knn_top1", "student", STUDENT, marker="s"),
    ]
    if any(drawn):
        steps, values = _series(metrics, "knn_top1")
        if steps:
            is_untrained = steps[0] == 0 and "init_from" not in metrics[0]
            first = "untrained" if is_untrained else f"at step {steps[0]:,}"
            _level(axes, values[0], f"{first}: {values[0]:.1f}")
        low, high = _padded(axes)
        axes.set_ylim(max(low, -2.0), min(high, 102.0))
        _legend(axes)


def _schedules(figure: Figure, place: SubplotSpec, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Three strips, because the values have nothing in common but the step."""
    strips = place.subgridspec(3, 1, hspace=0.1)
    rows = [
        ("lr", "Learning rate", BLUE),
        ("ema_momentum", "EMA momentum λ", GREEN),
        ("teacher_temp", "Teacher temperature τₜ", ORANGE),
    ]
    for row, (key, title, color) in enumerate(rows):
        axes = figure.add_subplot(strips[row])
        _panel(axes, title, metrics)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if _line(axes, metrics, key, title, color) and key != "ema_momentum":
            _from_zero(axes)
        if row < 2:
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)


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
    """Steps and values of a metric where it was logged and finite."""
    points = [(m["step"], _number(m, key)) for m in metrics if key in m]
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def _number(record: Mapping[str, Any], key: str) -> float:
    value = record.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _last(metrics: Sequence[Mapping[str, Any]], key: str) -> float | None:
    _, values = _series(metrics, key)
    return values[-1] if values else None


def _level(axes: Axes, value: float, label: str, above: bool = True) -> None:
    """A dashed line across the panel with its name above or below it."""
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
    """Limits of the panel's lines with room for a label above the highest."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    low, high = float(values.min()), float(values.max())
    room = (high - low) or abs(high) or 1.0
    return low - 0.08 * room, high + 0.15 * room


def _from_zero(axes: Axes) -> None:
    """Limits from zero, with room for half a line below it."""
    high = _padded(axes)[1]
    axes.set_ylim(-0.03 * abs(high), high)


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=9, framealpha=0.9, edgecolor=GRID, labelcolor=INK, loc="best")
