"""Pictures of a run: its curves, its attention, its crops.

Figures are made with matplotlib's object API and the Agg canvas: no display, no global state, any thread.
"""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from PIL import Image
from torch import Tensor

DPI = 120
FILE_LIMIT = 400_000
"""Bytes that a picture should stay below; it is saved with 256 colours, then smaller, to get there."""

# Okabe and Ito's palette: told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, QUIET, GRID = "#222222", "#666666", "#E4E4E4"
TEACHER, STUDENT = BLUE, ORANGE


# --- curves ---------------------------------------------------------------------------------------------


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, by step; a line that was cut off by a kill is skipped."""
    records: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records[record["step"]] = {**records.get(record["step"], {}), **record}
    return [records[step] for step in sorted(records)]


def plot_curves(metrics_file: Path, out: Path, *, name: str | None = None) -> bool:
    """Draw a metrics.jsonl as one PNG; without a line in it there is no picture, and False is returned.

    `name` is the title's first part; by default the folder that holds the metrics, which is the run id.
    """
    metrics = read_metrics(metrics_file)
    if not metrics:
        return False
    _save(curves_figure(metrics, name=name or metrics_file.resolve().parent.name), out)
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
    _panel(axes, "Norm of the centre", metrics)
    if _line(axes, metrics, "center_norm", "centre", TEACHER):
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
            first = "untrained" if steps[0] == 0 else f"at step {steps[0]:,}"
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
    for row, (key, title, colour) in enumerate(rows):
        axes = figure.add_subplot(strips[row])
        _panel(axes, title, metrics)
        axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if _line(axes, metrics, key, title, colour) and key != "ema_momentum":
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
    axes: Axes, metrics: Sequence[Mapping[str, Any]], key: str, label: str, colour: str, marker: str = ""
) -> bool:
    """Draw one metric over the steps; False where no finite value of it was logged."""
    steps, values = _series(metrics, key)
    if not steps:
        return False
    if len(steps) <= 2:
        marker = marker or "o"
    axes.plot(steps, values, color=colour, label=label, linewidth=1.8, marker=marker, markersize=5)
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


# --- sheets of pictures ---------------------------------------------------------------------------------


def plot_attention(
    pictures: Tensor,
    maps: Tensor,
    masks: Tensor | None,
    untrained_maps: Tensor | None,
    out: Path,
    *,
    caption: str = "",
    max_heads: int = 6,
) -> None:
    """Save `attention_figure` as a PNG."""
    _save(attention_figure(pictures, maps, masks, untrained_maps, caption=caption, max_heads=max_heads), out)


def attention_figure(
    pictures: Tensor,
    maps: Tensor,
    masks: Tensor | None,
    untrained_maps: Tensor | None,
    *,
    caption: str = "",
    max_heads: int = 6,
) -> Figure:
    """One row per picture: picture, mask outline, attention untrained and now (mean of the heads), heads.

    pictures uint8 (N, C, H, W); maps (N, heads, h, w), per patch or at the picture's size; masks (N, H, W),
    bool or shares; untrained_maps like maps. About 8 pictures make a good sheet.
    """
    heads = min(maps.shape[1], max_heads) if maps.shape[1] > 1 else 0
    titles = ["picture"]
    titles += ["object"] if masks is not None else []
    titles += ["attention,\nuntrained"] if untrained_maps is not None else []
    titles += ["attention,\nnow"] + [f"head {head + 1}" for head in range(heads)]
    scale = "each map from 0 to its own maximum"
    if untrained_maps is not None:
        scale = "untrained and now on one scale per picture, from 0; each head from 0 to its own maximum"
    figure, grid = _sheet(len(pictures), titles, caption, scale + _channel_note(pictures))
    size = tuple(pictures.shape[-2:])
    for row, picture in enumerate(pictures):
        cells = iter(grid[row])
        _show(next(cells), picture)
        if masks is not None:
            _outline(_show(next(cells), picture), masks[row])
        now = maps[row].mean(dim=0)
        top = _top(now)
        if untrained_maps is not None:
            untrained = untrained_maps[row].mean(dim=0)
            top = max(top, _top(untrained))
            _heat(next(cells), untrained, size, top)
        _heat(next(cells), now, size, top)
        for head in range(heads):
            _heat(next(cells), maps[row, head], size, _top(maps[row, head]))
    return figure


def plot_crops(
    rows: Sequence[tuple[Tensor, Sequence[Tensor]]],
    out: Path,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    caption: str = "",
) -> None:
    """Save `crops_figure` as a PNG."""
    _save(crops_figure(rows, mean=mean, std=std, caption=caption), out)


def crops_figure(
    rows: Sequence[tuple[Tensor, Sequence[Tensor]]],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    caption: str = "",
) -> Figure:
    """One row per picture: the picture uint8 (C, H, W) and its augmented crops (C, h, w).

    Crops are uint8, or float: then normalised by mean and std, or in 0–1 where these are not given.
    The larger crops are titled global, the smaller local.
    """
    crops = rows[0][1]
    largest = max((crop.shape[-1] for crop in crops), default=0)
    titles, numbers = ["picture"], {"global": 0, "local": 0}
    for crop in crops:
        kind = "global" if crop.shape[-1] == largest else "local"
        numbers[kind] += 1
        titles.append(f"{kind} {numbers[kind]}\n{crop.shape[-1]} px")
    figure, grid = _sheet(len(rows), titles, caption, _channel_note(rows[0][0][None]).lstrip("; "))
    for cells, (picture, its_crops) in zip(grid, rows, strict=True):
        _show(cells[0], picture)
        for cell, crop in zip(cells[1:], its_crops, strict=True):
            _show(cell, _as_bytes(crop, mean, std))
    return figure


def _as_bytes(crop: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    if not crop.is_floating_point():
        return crop
    if mean is not None and std is not None:
        crop = crop.cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return (crop.cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def _sheet(rows: int, titles: Sequence[str], caption: str, note: str) -> tuple[Figure, list[list[Axes]]]:
    """An empty sheet of square cells; titles over the first row, caption above, note below. In inches."""
    cell = min(max(1.3, 5.8 / len(titles)), 2.2)
    width = max(cell * len(titles) + 0.2, 6.0)
    caption = textwrap.fill(caption, int(width * 11.5))
    header = 0.5 + 0.21 * (caption.count("\n") + 1 if caption else 0)
    footer = 0.3 if note else 0.1
    height = cell * rows + header + footer
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    grid = figure.add_gridspec(
        rows,
        len(titles),
        left=0.1 / width,
        right=1 - 0.1 / width,
        bottom=footer / height,
        top=1 - header / height,
        wspace=0.06,
        hspace=0.06,
    )
    axes = [[figure.add_subplot(grid[row, column]) for column in range(len(titles))] for row in range(rows)]
    for row in axes:
        for cell_axes in row:
            cell_axes.set_axis_off()
    for cell_axes, title in zip(axes[0], titles, strict=True) if rows else ():
        cell_axes.set_title(title, fontsize=9.5, color=INK, pad=4)
    if caption:
        figure.suptitle(caption, fontsize=11, color=INK, y=1 - 0.1 / height, va="top")
    if note:
        figure.text(0.1 / width, 0.08 / height, note, fontsize=8.5, color=QUIET, va="bottom")
    return figure, axes


def _show(axes: Axes, picture: Tensor) -> Axes:
    """Draw a picture uint8 (C, H, W): one channel grey, two as red and cyan, more by the first three."""
    picture = picture.cpu()
    if picture.shape[0] == 2:
        picture = picture[[0, 1, 1]]
    pixels = picture[0] if picture.shape[0] == 1 else picture[:3].permute(1, 2, 0)
    # Small pictures stay crisp squares; large ones are reduced without aliasing.
    interpolation = "nearest" if max(pixels.shape[:2]) <= 96 else "antialiased"
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=255, interpolation=interpolation)
    return axes


def _channel_note(pictures: Tensor) -> str:
    channels = pictures.shape[1]
    if channels == 2:
        return "; channel 1 is red, channel 2 cyan"
    return f"; channels 1–3 of {channels} are shown as red, green, blue" if channels > 3 else ""


def _top(values: Tensor) -> float:
    """Upper end of a colour scale."""
    return values.float().nan_to_num().max().item() or 1.0


def _heat(axes: Axes, values: Tensor, size: tuple[int, ...], top: float) -> None:
    """Draw attention (h, w) over the area of a picture of (H, W) pixels, in colours from 0 to top."""
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    pixels = values.float().cpu().numpy()
    axes.imshow(pixels, cmap="viridis", vmin=0, vmax=top, interpolation="nearest", extent=extent)


def _outline(axes: Axes, mask: Tensor) -> None:
    """Draw the mask's border along pixel edges, light on dark so that it shows on any picture."""
    inside = (mask.float().cpu() > 0.5).float()
    if not inside.any() or inside.all():
        return
    height, width = inside.shape
    fine = inside.repeat_interleave(8, 0).repeat_interleave(8, 1) if max(height, width) <= 96 else inside
    rows, columns = fine.shape
    y = (torch.arange(rows) + 0.5) * height / rows - 0.5
    x = (torch.arange(columns) + 0.5) * width / columns - 0.5
    for colour, thickness in (("black", 2.6), ("white", 1.2)):
        axes.contour(x.numpy(), y.numpy(), fine.numpy(), levels=[0.5], colors=[colour], linewidths=thickness)


# --- files ----------------------------------------------------------------------------------------------


def _save(figure: Figure, out: Path) -> None:
    """Write a PNG, whole or not at all, if possible below FILE_LIMIT."""
    canvas = FigureCanvasAgg(figure)
    for dpi, palette in ((DPI, False), (DPI, True), (90, True), (75, True)):
        figure.set_dpi(dpi)
        canvas.draw()
        image = Image.fromarray(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))
        if palette:
            image = image.quantize(256)
        buffer = io.BytesIO()
        image.save(buffer, format="png", optimize=True, dpi=(dpi, dpi))
        if buffer.tell() <= FILE_LIMIT:
            break
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_bytes(buffer.getvalue())
    part.replace(out)
