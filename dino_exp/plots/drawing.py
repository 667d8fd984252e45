"""Figures in Vega-Lite, for pages and as PNG and SVG files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from dino_exp.atomic import write_atomically

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])

Row = dict[str, Any]

CELLS = "cells"
"""Name of the data set that all maps of a page share."""
MANY_ROWS = 10_000
"""Rows from which a PNG of double size takes seconds."""

QUIET = "#8a9099"
"""A gray that is readable on a light and a dark background."""
FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass
class Figure:
    """A figure of a page, and its files beside the page."""

    name: str
    """Name of its files, without the suffix."""
    title: str
    spec: dict[str, Any]
    """Vega-Lite with the rows under `datasets`; width and height are those of the files."""
    description: str
    """What the figure shows, in words, for screen readers."""
    columns: Sequence[str] = ()
    """Column heads of `table`."""
    table: Sequence[Sequence[str]] = ()
    """The numbers of the figure, or a readable selection of them."""
    renderer: str = "svg"
    """svg, whose marks screen readers can read, or canvas for many points."""
    note: str = ""
    """A sentence below the figure."""


DARK, LIGHT = "#56B4E9 #E69F00 #2FC79A #E0A0C4 #F0E442", "#0072B2 #D55E00 #00805C #B0568A #7A6A00"
"""Okabe and Ito's colors, distinct with every kind of color vision; lighter for a dark page."""
KINDS_DARK, KINDS_LIGHT = "#56B4E9 #E8DC50 #FF9050 #E0A0C4", "#0072B2 #8A7A00 #D55E00 #B0568A"
"""Likewise, for healthy, slow, collapsed and failed."""


def theme(dark: bool) -> dict[str, Any]:
    """Return Vega-Lite's configuration for a light or a dark page."""
    ink, quiet, grid = ("#e8e8e6", "#a9abad", "#3a3d41") if dark else ("#1d2126", "#5a6068", "#dfe2e5")
    header = {"labelColor": ink, "titleColor": ink, "labelFontSize": 11}
    text = {**header, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "background": "transparent",
        "font": FONT,
        "axis": {**text, "gridColor": grid, "domainColor": quiet, "tickColor": quiet},
        "legend": {**text, "symbolBaseFillColor": ink, "symbolBaseStrokeColor": ink, "labelLimit": 220},
        "header": header,
        "title": {"color": ink},
        "text": {"color": ink},
        "rule": {"color": quiet},
        "view": {"stroke": grid},
        "range": {
            "category": (DARK if dark else LIGHT).split(),
            "ordinal": (KINDS_DARK if dark else KINDS_LIGHT).split(),
            "heatmap": {"scheme": "viridis"},
            "ramp": {"scheme": "viridis"},
        },
    }


def to_spec(chart: alt.TopLevelMixin, datasets: dict[str, list[Row]]) -> dict[str, Any]:
    """Return a chart over named data as Vega-Lite with its rows, each of which Altair would validate."""
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    spec["datasets"] = datasets
    return spec


def level_lines() -> list[alt.Chart]:
    """Return dashed lines at `value` of each row of the data set `level`, with its `text` above the end."""
    line = alt.Chart(alt.NamedData("level")).encode(y="value:Q")
    text = line.mark_text(align="right", dx=-4, dy=-6, fontSize=11, aria=False)
    return [
        line.mark_rule(strokeDash=[3, 3], aria=False),
        text.encode(text="text:N", x=alt.value("width")),
    ]


def by_position(title: str, **axis: Any) -> alt.X:
    """Return an x axis of the words in `x`, upright and in the order of `xi`."""
    order = alt.EncodingSortField("xi", op="min")
    return alt.X("x:N", title=title, sort=order, axis=alt.Axis(labelAngle=0, **axis))


def write_files(figure: Figure, folder: Path) -> list[Path]:
    """Write a figure as SVG and PNG, and return their paths."""
    spec = {**figure.spec, "config": {**theme(dark=False), "background": "white"}, "padding": 12}
    if "title" not in spec:
        spec["title"] = {"text": figure.title, "anchor": "start", "fontSize": 14}
    svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)
    many = sum(map(len, figure.spec["datasets"].values())) > MANY_ROWS
    png = vl_convert.svg_to_png(svg, scale=1 if many else 2)
    paths = [folder / f"{figure.name}.svg", folder / f"{figure.name}.png"]
    for path, content in zip(paths, (svg.encode(), png), strict=True):
        write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]  # of a default
    return paths


def library() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script that needs no network."""
    return library_ahead().result()


@lru_cache
def library_ahead() -> Future[str]:
    """Start to bundle `library`, which takes two seconds, and return its future."""
    return ThreadPoolExecutor(1).submit(_bundle)


def _bundle() -> str:
    script: str = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]  # wrong in its stub
    return script.replace("</script", "<\\/script")


def number_text(value: float | None, form: str) -> str:
    """Return a number in a format; – without a number."""
    return "–" if value is None else f"{value:{form}}"
