"""The page with a two-dimensional map of features: one point per image, with its thumbnail as a tooltip."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
from PIL import Image
from torch import Tensor

from dino_exp.atomic import write_atomically
from dino_exp.data.subset import evenly_spread
from dino_exp.plots.drawing import QUIET, Figure, Row, to_spec
from dino_exp.plots.html_page import render

THUMBNAIL = 48
"""Side of a thumbnail in pixels."""
MOST_THUMBNAILS = 10_000
THUMBNAIL_BYTES = 12_000_000
"""Limit for all thumbnails of a page; they are made smaller and coarser to meet it."""
STEPS = ((48, 80), (48, 50), (32, 50), (24, 30))
"""Side in pixels and WebP quality, tried in turn until the thumbnails fit."""
SAMPLE = 64
"""Thumbnails from which the size of all is estimated."""
MOST_CLASSES = 20
"""Above this number, classes have no marks of their own."""
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
"""Seven shapes: with the five colors up to 35 classes differ, and up to seven by shape alone."""
MOST_IN_TABLE = 2000
MOST_IN_SVG = 3000
HEIGHT = 620
ONE_COLOR = alt.Color("one:N", legend=None)
"""The first color of the theme, light or dark."""


@dataclass(frozen=True)
class MapPoint:
    """An image on the map, and the nearest of all other images, on the map or not."""

    name: str
    label: str | None
    nearest: str
    nearest_label: str | None
    cosine: float
    """Cosine with the nearest image."""
    thumbnail: str = ""
    """A data URL, or empty."""


@dataclass(frozen=True)
class FeatureMap:
    """The content of the page."""

    title: str
    method: str
    """The method and its settings, in words."""
    coordinates: np.ndarray
    """(N, 2)."""
    points: Sequence[MapPoint]
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = field(default_factory=list)


def write_map(content: FeatureMap, path: Path) -> None:
    """Write the page as one file that works offline."""
    figure = map_figure(content)
    text = render("map.html", [figure], None, page=content, figure=figure)
    write_atomically(path, lambda file: file.write(text.encode(errors="replace")))


def thumbnails(images: Sequence[Tensor]) -> list[str]:
    """Return data URLs of images uint8 (C, H, W), together at most THUMBNAIL_BYTES; empty if none fit."""
    some = [images[row] for row in evenly_spread(len(images), SAMPLE)]
    for side, quality in STEPS:
        share = sum(len(_thumbnail(image, side, quality)) for image in some) / max(len(some), 1)
        if share * len(images) > THUMBNAIL_BYTES:
            continue
        urls = [_thumbnail(image, side, quality) for image in images]
        if sum(map(len, urls)) <= THUMBNAIL_BYTES:
            return urls
    return [""] * len(images)


def _thumbnail(image: Tensor, side: int, quality: int) -> str:
    channels = {1: [0, 0, 0], 2: [0, 1, 1]}.get(len(image), [0, 1, 2])  # two are shown as red and cyan
    small = Image.fromarray(image[channels].permute(1, 2, 0).contiguous().numpy())
    small.thumbnail((side, side))
    out = io.BytesIO()
    small.save(out, "WEBP", quality=quality)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


def map_figure(content: FeatureMap) -> Figure:
    """Return the scatter plot, with points marked by class if there are few; a class can be shown alone."""
    classes = sorted({each.label for each in content.points if each.label is not None})
    names = without_common_folder([name for each in content.points for name in (each.name, each.nearest)])
    rows: list[Row] = []
    table: list[Sequence[str]] = []
    for index, ((x, y), each) in enumerate(zip(content.coordinates.tolist(), content.points, strict=True)):
        name, near = names[2 * index : 2 * index + 2]
        near += f" ({each.nearest_label})" if each.nearest_label is not None else ""
        of_class = {"class": each.label} if classes else {}
        point = {"x": round(x, 3), "y": round(y, 3), "name": name}
        rows.append(
            {**point, **of_class, "nearest": f"{near}, cosine {each.cosine:.3f}", "image": each.thumbnail}
        )
        table.append([name, *([each.label or ""] if classes else []), near, f"{each.cosine:.3f}"])
    groups = f" of {len(classes)} classes" if classes else ""
    by_class = "colored and shaped by class" if 0 < len(classes) <= MOST_CLASSES else ""
    return Figure(
        name="features",
        title=f"{len(rows):,} images by {content.method}",
        spec=to_spec(_chart(content.coordinates, classes), {"images": rows}),
        description=f"Scatter plot of {len(rows)} images{groups}{', ' if by_class else ''}{by_class}; "
        "their names and nearest images are in the table below.",
        columns=["image", *(["class"] if classes else []), "nearest image", "cosine"],
        table=table[:MOST_IN_TABLE],
        renderer="svg" if len(rows) <= MOST_IN_SVG else "canvas",
        note=_note(classes, len(rows)),
    )


def _note(classes: Sequence[str], points: int) -> str:
    parts = ["Hover over a point to see its image."]
    if classes:
        few = len(classes) <= MOST_CLASSES
        click = "Click a class in the legend (Shift adds more), or choose one" if few else "Choose a class"
        parts.append(f"{click} below the map, to see it alone; gray dots are images of other classes.")
    parts.append("Drag to move; pinch, or Ctrl and wheel, to zoom; double-click to reset.")
    parts.append("Neighbors have similar features; distances between groups mean little.")
    if points > MOST_IN_TABLE:
        parts.append(f"The table has the first {MOST_IN_TABLE:,}.")
    return " ".join(parts)


def _chart(coordinates: np.ndarray, classes: Sequence[str]) -> alt.LayerChart:
    (left, bottom), (right, top) = coordinates.min(axis=0), coordinates.max(axis=0)
    pad_x, pad_y = 0.04 * (right - left) or 1.0, 0.04 * (top - bottom) or 1.0
    size = max(10.0, min(60.0, 60.0 * math.sqrt(700 / len(coordinates))))
    x, y = (
        alt.X("x:Q", axis=None, scale=alt.Scale(domain=[float(left - pad_x), float(right + pad_x)])),
        alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[float(bottom - pad_y), float(top + pad_y)])),
    )
    data = alt.Chart(alt.NamedData("images"))
    behind = data.mark_circle(size=size / 3, color=QUIET, opacity=0.35, tooltip=None, aria=False).encode(x, y)
    tooltips = [alt.Tooltip("image:N"), alt.Tooltip("name:N")]
    tooltips += [alt.Tooltip("class:N")] if classes else []
    tooltips += [alt.Tooltip("nearest:N")]
    points = (
        data.transform_calculate(one="'all'")
        .mark_point(size=size, filled=True, opacity=0.85, aria=False)
        .encode(x, y, tooltip=tooltips)
    )
    move = alt.selection_interval(name="move", bind="scales", zoom="wheel![event.ctrlKey]")
    if not classes:
        points = points.encode(color=ONE_COLOR).add_params(move)
        return _sized(alt.layer(behind, points))
    only = alt.param(
        name="only",
        value=None,
        bind=alt.binding_select(options=[None, *classes], labels=["all", *classes], name="Class "),
    )
    points = points.transform_filter("only === null || datum.class === only")
    if len(classes) <= MOST_CLASSES:
        picked = alt.selection_point(name="picked", fields=["class"], bind="legend")
        longest = min(26, max(map(len, classes)))
        legend = alt.Legend(orient="bottom", title=None, columns=max(1, min(5, 300 // (7 * longest + 26))))
        points = points.encode(
            color=alt.Color("class:N", scale=alt.Scale(domain=classes), legend=legend),
            shape=alt.Shape("class:N", scale=alt.Scale(domain=classes, range=SHAPES), legend=legend),
        ).transform_filter(picked)
        points = points.add_params(move, picked)
    else:
        points = points.encode(color=ONE_COLOR).add_params(move)
    return _sized(alt.layer(behind, points).add_params(only))


def _sized(chart: Any) -> alt.LayerChart:
    return chart.properties(width=HEIGHT, height=HEIGHT)


def without_common_folder(names: Sequence[str]) -> list[str]:
    """Return paths relative to the deepest folder that they share; other names stay as they are."""
    start, end = min(names), max(names)  # all others are between these and share the same prefix
    shared = next((at for at, (a, b) in enumerate(zip(start, end, strict=False)) if a != b), len(start))
    cut = start.rfind("/", 0, shared) + 1
    return [name[cut:] for name in names]
