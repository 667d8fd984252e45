"""Attention maps and the patches that hold most of each, beside their images."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dino_exp.plots.png import DPI, INK, QUIET, save
from dino_exp.plots.sheets import channel_note, draw_image, heat, outline, top_of

MAX_HEADS = 6
"""Heads in a row of a sheet; the figure of a single image has them all."""


WATCHABLE = 240
"""Pixels: the least height of a video."""


@dataclass(frozen=True)
class Seen:
    """An image and what a network made of it."""

    image: Tensor
    """uint8 (C, H, W)."""
    maps: Tensor
    """(heads, h, w)."""
    kept: Tensor
    """bool (1 + heads, h, w): the thresholded mean of the heads, then each head."""
    colors: Tensor
    """float (3, h, w) in 0–1: features by place, as colors."""
    mask: Tensor | None
    """bool (H', W'), true on the object."""


@dataclass(frozen=True)
class Cell:
    title: str
    draw: Callable[[Axes], object]


def plot_image(seen: Seen, out: Path, *, kind: str, note: str, caption: str) -> None:
    """One image with the maps of all heads, as a PNG; kind is "attention" or "feature norm"."""
    first, heads = _cells(seen, kind), _head_cells(seen)
    columns = 4 if len(heads) <= 8 else 6
    rows = [first, *(heads[start : start + columns] for start in range(0, len(heads), columns))]
    _save(rows, max(columns, len(first)), seen.image.shape[-2:], out, caption, note, titled=True)


def plot_sheet(images: Sequence[Seen], out: Path, *, kind: str, note: str, caption: str) -> None:
    """One row per image with the maps of the first heads, as a PNG; about 8 make a good sheet."""
    rows = []
    for seen in images:
        maps = [_map(f"head {head + 1}", seen, head) for head in range(min(len(seen.maps), MAX_HEADS))]
        rows.append(_cells(seen, kind) + (maps if len(seen.maps) > 1 else []))
    shapes = {tuple(seen.image.shape[-2:]) for seen in images}
    shape = shapes.pop() if len(shapes) == 1 else (1, 1)
    note += channel_note(images[0].image[None])
    _save(rows, max(map(len, rows)), shape, out, caption, note, titled=False)


def side_by_side(frames: Tensor, maps: Tensor, top: float) -> Iterator[np.ndarray]:
    """Each frame uint8 (N, C, H, W) with its map (N, h, w) beside it, uint8 (H, 2 W, 3).

    Colors of the map go from 0 to `top`; what is above has the color of `top`. Frames less than WATCHABLE
    high are enlarged by a whole number.
    """
    zoom = max(1, -(-WATCHABLE // frames.shape[-2]))
    palette = (matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    levels = (maps / top).nan_to_num().clamp(0, 1).mul(255).round()[:, None]
    sized = F.interpolate(levels, size=frames.shape[-2:], mode="nearest-exact")[:, 0]
    for frame, level in zip(frames, sized, strict=True):
        image = frame.expand(3, -1, -1).permute(1, 2, 0).numpy()
        both = np.concatenate([image, palette[level.to(torch.uint8).numpy()]], axis=1)
        yield both.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _cells(seen: Seen, kind: str) -> list[Cell]:
    """Image, features, mean map and what holds most of it."""
    mean = f"mean {kind}" if len(seen.maps) > 1 else kind

    def image(axes: Axes) -> None:
        draw_image(axes, seen.image)
        if seen.mask is not None:
            outline(axes, _sized(seen.mask, seen.image))

    return [
        Cell("image" if seen.mask is None else "image, object", image),
        Cell("features", lambda axes: draw_image(axes, _sized(seen.colors, seen.image).mul(255).byte())),
        Cell(mean, lambda axes: _heat_of(axes, seen, seen.maps.mean(dim=0))),
        Cell("most of it", lambda axes: _kept(axes, seen.image, seen.kept[0])),
    ]


def _head_cells(seen: Seen) -> list[Cell]:
    cells = []
    for head in range(len(seen.maps)) if len(seen.maps) > 1 else ():
        kept = seen.kept[1 + head]
        cells += [
            _map(f"head {head + 1}", seen, head),
            Cell("", lambda axes, kept=kept: _kept(axes, seen.image, kept)),  # type: ignore[misc]  # of a default
        ]
    return cells


def _map(title: str, seen: Seen, head: int) -> Cell:
    return Cell(title, lambda axes: _heat_of(axes, seen, seen.maps[head]))


def _heat_of(axes: Axes, seen: Seen, values: Tensor) -> None:
    heat(axes, values, tuple(seen.image.shape[-2:]), top_of(values))


def _kept(axes: Axes, image: Tensor, kept: Tensor) -> None:
    """The image, faded to gray outside the patches that are kept."""
    inside = _sized(kept, image)
    draw_image(axes, torch.where(inside, image, (0.3 * image + 0.7 * 128).to(torch.uint8)))
    outline(axes, inside)


def _sized(values: Tensor, image: Tensor) -> Tensor:
    """Values (..., h, w) at the image's size (nearest); bool stays bool."""
    flat = values.reshape(1, -1, *values.shape[-2:]).float()
    sized = F.interpolate(flat, size=image.shape[-2:], mode="nearest-exact")[0]
    sized = sized.reshape(*values.shape[:-2], *image.shape[-2:])
    return sized > 0.5 if values.dtype == torch.bool else sized


def _save(
    rows: Sequence[Sequence[Cell]],
    columns: int,
    shape: Sequence[int],
    out: Path,
    caption: str,
    note: str,
    *,
    titled: bool,
) -> None:
    """Draw the cells, each of the images' shape; titles over every row, or over the first alone."""
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
    for row, cells in enumerate(rows):
        bottom = height - header - (row + 1) * tall - row * gap
        for column, each in enumerate(cells):
            place = (0.13 + column * cell) / width, bottom / height, (cell - 0.06) / width, tall / height
            axes = figure.add_axes(place)
            axes.set_axis_off()
            each.draw(axes)
            if titled or row == 0:
                axes.set_title(each.title, fontsize=9.5, color=INK, pad=4)
    figure.suptitle(caption, fontsize=11, color=INK, y=1 - 0.1 / height, va="top", parse_math=False)
    figure.text(0.1 / width, 0.08 / height, note, fontsize=8.5, color=QUIET, va="bottom", parse_math=False)
    save(figure, out)
