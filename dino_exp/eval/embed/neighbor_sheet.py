"""The figure of images and their nearest neighbors."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dino_exp.plots.png import DPI, INK, QUIET
from dino_exp.plots.sheets import channel_note, draw_image

SAME, OTHER = "#0072B2", "#C04E00"
CELL, TEXT_LINE = 1.06, 0.15
"""Inches: an image with the gap beside it, and a line of text below it."""
LONGEST = 15
"""Characters of a class name that fit below an image."""


@dataclass(frozen=True)
class LabeledImage:
    """One image of the figure, with the text below it."""

    pixels: Tensor | None
    """uint8 (C, H, W); None if the file was removed meanwhile."""
    label: str | None
    """Name of the class, if known."""
    cosine: float | None = None
    """Cosine with the row's first image; None for that image."""


def neighbors_figure(rows: Sequence[Sequence[LabeledImage]], caption: str = "") -> Figure:
    """Draw one row per image: the image, then its neighbors, nearest first, with their cosines.

    Neighbors of the same class have a solid frame, others a dashed frame and a cross. All rows have the same
    length; about 8 rows of 1 + 8 images fit well.
    """
    labeled = any(image.label is not None for row in rows for image in row)
    columns = max(map(len, rows))
    width = CELL * (columns + 0.25) + 0.1
    caption = textwrap.fill(caption, int(width * 11.5))
    header = 0.32 + (0.24 * (caption.count("\n") + 1) if caption else 0)
    line = CELL + TEXT_LINE * (2 if labeled else 1)
    height = header + line * len(rows) + 0.32
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    side = CELL - 0.1
    for row, images in enumerate(rows):
        top = height - header - row * line
        for column, image in enumerate(images):
            left = 0.1 + CELL * (column + (0.25 if column else 0))
            axes = figure.add_axes((left / width, (top - side) / height, side / width, side / height))
            _draw_pixels(axes, image.pixels)
            _frame(axes, image, images[0] if column and labeled else None)
            if row == 0:
                title = "image" if not column else "nearest" if column == 1 else f"{column}."
                axes.set_title(title, fontsize=9.5, color=INK, pad=4)
    if caption:
        figure.text(
            0.1 / width, 1 - 0.08 / height, caption, fontsize=11, color=INK, va="top", parse_math=False
        )
    figure.text(0.1 / width, 0.08 / height, _note(rows, labeled), fontsize=8.5, color=QUIET, va="bottom")
    return figure


def _draw_pixels(axes: Axes, pixels: Tensor | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if pixels is None:
        axes.set_facecolor("#EEEEEE")
        axes.text(0.5, 0.5, "missing", transform=axes.transAxes, ha="center", va="center", color=QUIET)
    else:
        draw_image(axes, pixels)


def _frame(axes: Axes, image: LabeledImage, query: LabeledImage | None) -> None:
    """Draw the text below an image, and a frame around a neighbor whose class can be compared."""
    label = image.label or ""
    label = label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
    color = INK
    if query is not None:
        same = image.label == query.label
        color = SAME if same else OTHER
        label = label if same else f"× {label}"
        for spine in axes.spines.values():
            spine.set(visible=True, color=color, linewidth=2.0 if same else 2.4)
            spine.set_linestyle("-" if same else (0, (2.2, 1.4)))
    words = [label] if image.cosine is None else [f"{image.cosine:.3f}", label]
    text = "\n".join(word for word in words if word)
    axes.text(
        0.5,
        -0.035,
        text,
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=7.5,
        color=color,
        parse_math=False,  # the name of a class may be $x$
    )


def _note(rows: Sequence[Sequence[LabeledImage]], labeled: bool) -> str:
    note = "numbers: cosine of the features"
    if labeled:
        note += "; solid frame: same class, dashed frame and ×: another class"
    first = next((each.pixels for row in rows for each in row if each.pixels is not None), None)
    return note + (channel_note(first[None]) if first is not None else "")
