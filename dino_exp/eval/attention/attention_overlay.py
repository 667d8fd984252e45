"""Figures of images with their attention maps and the patches that hold most of each map."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dino_exp.eval.attention.attend import enlarged
from dino_exp.plots.png import DPI, INK, QUIET, save
from dino_exp.plots.sheets import channel_note, draw_image, heat, outline, top_of

MAX_HEADS = 6
"""Most heads in a row of a sheet; the figure of a single image has all heads."""

LEAST_HEIGHT = 240
"""Least height of a video in pixels."""


@dataclass(frozen=True)
class ImageMaps:
    """An image and its maps."""

    image: Tensor
    """uint8 (C, H, W)."""
    maps: Tensor
    """(heads, h, w)."""
    kept: Tensor
    """bool (1 + heads, h, w): the thresholded mean of the heads, then each head."""
    colors: Tensor
    """float (3, h, w) in 0–1: the features at each position, as colors."""
    mask: Tensor | None
    """bool (H', W'), true on the object."""


@dataclass(frozen=True)
class TitledPlot:
    """One cell of a figure."""

    title: str
    draw: Callable[[Axes], object]


def plot_image(shown: ImageMaps, out: Path, *, kind: str, note: str, caption: str) -> None:
    """Draw one image with the maps of all heads as a PNG; kind is "attention" or "feature norm"."""
    first, heads = _summary_plots(shown, kind), _head_plots(shown)
    columns = 4 if len(heads) <= 8 else 6
    rows = [first, *(heads[start : start + columns] for start in range(0, len(heads), columns))]
    _save(rows, max(columns, len(first)), shown.image.shape[-2:], out, caption, note, titled=True)


def plot_sheet(images: Sequence[ImageMaps], out: Path, *, kind: str, note: str, caption: str) -> None:
    """Draw one row per image with the maps of the first heads as a PNG; about 8 rows make a good sheet."""
    rows = []
    for shown in images:
        heads = range(min(len(shown.maps), MAX_HEADS)) if len(shown.maps) > 1 else ()
        rows.append(_summary_plots(shown, kind) + [_head_plot(shown, head) for head in heads])
    shapes = {tuple(shown.image.shape[-2:]) for shown in images}
    shape = shapes.pop() if len(shapes) == 1 else (1, 1)
    note += channel_note(images[0].image[None])
    _save(rows, max(map(len, rows)), shape, out, caption, note, titled=False)


def side_by_side(frames: Tensor, maps: Tensor, top: float) -> Iterator[np.ndarray]:
    """Yield each frame of uint8 (N, C, H, W) with its map of (N, h, w) beside it, uint8 (H, 2 W, 3).

    The color scale goes from 0 to `top`, to which larger values are clamped. Frames lower than LEAST_HEIGHT
    are enlarged by an integer factor.
    """
    zoom = max(1, -(-LEAST_HEIGHT // frames.shape[-2]))
    palette = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    levels = (maps / top).nan_to_num().clamp(0, 1).mul(255).round()
    for frame, level in zip(frames, enlarged(levels, frames.shape[-2:]), strict=True):
        image = frame.expand(3, -1, -1).permute(1, 2, 0).numpy()
        both = np.concatenate([image, palette[level.to(torch.uint8).numpy()]], axis=1)
        yield both.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _summary_plots(shown: ImageMaps, kind: str) -> list[TitledPlot]:
    """Return plots of the image, its features, the mean map, and the patches that hold most of it."""
    mean, size = f"mean {kind}" if len(shown.maps) > 1 else kind, shown.image.shape[-2:]

    def image(axes: Axes) -> None:
        draw_image(axes, shown.image)
        if shown.mask is not None:
            outline(axes, enlarged(shown.mask, size))

    return [
        TitledPlot("image" if shown.mask is None else "image, object", image),
        TitledPlot("features", lambda axes: draw_image(axes, enlarged(shown.colors, size).mul(255).byte())),
        TitledPlot(mean, lambda axes: _draw_map(axes, shown, shown.maps.mean(dim=0))),
        TitledPlot("most of it", lambda axes: _draw_kept(axes, shown, 0)),
    ]


def _head_plots(shown: ImageMaps) -> list[TitledPlot]:
    """Return two plots per head, if there are several: its map, and the patches that hold most of it."""
    plots = []
    for head in range(len(shown.maps)) if len(shown.maps) > 1 else ():
        plots += [_head_plot(shown, head), TitledPlot("", partial(_draw_kept, shown=shown, row=1 + head))]
    return plots


def _head_plot(shown: ImageMaps, head: int) -> TitledPlot:
    return TitledPlot(f"head {head + 1}", lambda axes: _draw_map(axes, shown, shown.maps[head]))


def _draw_map(axes: Axes, shown: ImageMaps, values: Tensor) -> None:
    heat(axes, values, tuple(shown.image.shape[-2:]), top_of(values))


def _draw_kept(axes: Axes, shown: ImageMaps, row: int) -> None:
    """Draw the image, faded to gray outside the patches of this row of `kept`."""
    image, inside = shown.image, enlarged(shown.kept[row], shown.image.shape[-2:])
    draw_image(axes, torch.where(inside, image, (0.3 * image + 0.7 * 128).to(torch.uint8)))
    outline(axes, inside)


def _save(
    rows: Sequence[Sequence[TitledPlot]],
    columns: int,
    shape: Sequence[int],
    out: Path,
    caption: str,
    note: str,
    *,
    titled: bool,
) -> None:
    """Draw plots of the images' shape in rows, with titles over every row if `titled`, else the first."""
    width = 10.0 if titled else min(max(1.5 * columns, 6.0), 10.0)
    cell = (width - 0.2) / columns
    tall = cell * min(max(shape[0] / shape[1], 0.4), 2.5)
    caption = textwrap.fill(caption, int(width * 11.5))
    note = textwrap.fill(note, int(width * 15))
    gap = 0.27 if titled else 0.06
    header = 0.42 + 0.21 * (caption.count("\n") + 1)
    footer = 0.14 + 0.16 * (note.count("\n") + 1)
    height = header + footer + len(rows) * tall + (len(rows) - 1) * gap
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    for row, plots in enumerate(rows):
        bottom = height - header - (row + 1) * tall - row * gap
        for column, each in enumerate(plots):
            left = 0.13 + column * cell
            axes = figure.add_axes((left / width, bottom / height, (cell - 0.06) / width, tall / height))
            axes.set_axis_off()
            each.draw(axes)
            if titled or row == 0:
                axes.set_title(each.title, fontsize=9.5, color=INK, pad=4)
    figure.suptitle(caption, fontsize=11, color=INK, y=1 - 0.1 / height, va="top", parse_math=False)
    figure.text(0.1 / width, 0.08 / height, note, fontsize=8.5, color=QUIET, va="bottom", parse_math=False)
    save(figure, out)
