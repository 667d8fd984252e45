"""Figures as Vega-Lite: what page, PNG and SVG have in common."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from dino_exp.atomic import write_atomically

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])

Row = dict[str, Any]

CELLS = "cells"
"""The rows of a map."""
MANY_ROWS = 10_000
"""From which a PNG of double size takes seconds."""

QUIET = "#8a9099"
"""Readable on light and dark ground."""
FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass
class Figure:
    """One figure of a page, and of the files beside it."""

    name: str
    """Of its files."""
    title: str
    spec: dict[str, Any]
    """Vega-Lite, with its rows under `datasets`; width and height are for the files."""
    description: str
    """What there is to see, in words, for those who do not see it."""
    columns: Sequence[str] = ()
    """Heads of `table`."""
    table: list[Sequence[str]] = field(default_factory=list)
    """The figure's numbers, or as many as one reads."""
    renderer: str = "svg"
    """svg, whose marks a screen reader can read, or canvas for many points."""
    note: str = ""
    """A sentence under it."""


def palette(dark: bool) -> list[str]:
    """Okabe and Ito's colors, told apart with every kind of color vision; lighter ones on dark ground."""
    if dark:
        return ["#56B4E9", "#E69F00", "#2FC79A", "#E0A0C4", "#F0E442"]
    return ["#0072B2", "#D55E00", "#00805C", "#B0568A", "#7A6A00"]


def kinds_palette(dark: bool) -> list[str]:
    """Of healthy, slow, collapsed and failed, from the same colors."""
    return (
        ["#56B4E9", "#E8DC50", "#FF9050", "#E0A0C4"] if dark else ["#0072B2", "#8A7A00", "#D55E00", "#B0568A"]
    )


def theme(dark: bool) -> dict[str, Any]:
    """Vega-Lite's configuration for a light or a dark page."""
    ink, quiet, grid = ("#e8e8e6", "#a9abad", "#3a3d41") if dark else ("#1d2126", "#5a6068", "#dfe2e5")
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12}
    return {
        "background": "transparent",
        "font": FONT,
        "axis": {
            **text,
            "gridColor": grid,
            "domainColor": quiet,
            "tickColor": quiet,
            "titleFontWeight": "normal",
        },
        "legend": {
            **text,
            "titleFontWeight": "normal",
            "symbolBaseFillColor": ink,
            "symbolBaseStrokeColor": ink,
            "labelLimit": 220,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelFontSize": 11},
        "title": {"color": ink},
        "text": {"color": ink},
        "rule": {"color": quiet},
        "view": {"stroke": grid},
        "range": {
            "category": palette(dark),
            "ordinal": kinds_palette(dark),
            "heatmap": {"scheme": "viridis"},
            "ramp": {"scheme": "viridis"},
        },
    }


def to_spec(chart: alt.TopLevelMixin, datasets: dict[str, list[Row]]) -> dict[str, Any]:
    """A chart over named data as plain Vega-Lite; the rows join it here, because Altair would check each."""
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    spec["datasets"] = datasets
    return spec


def write_files(figure: Figure, folder: Path) -> list[Path]:
    """Write the figure as SVG and PNG; returns their paths."""
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
    """Vega, Vega-Lite and vega-embed as one script that needs no network."""
    return library_ahead().result()


@lru_cache
def library_ahead() -> Future[str]:
    """The same while the caller does something else: putting it together takes two seconds."""
    return ThreadPoolExecutor(1).submit(_bundle)


def _bundle() -> str:
    script: str = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]  # wrong in its stub
    return script.replace("</script", "<\\/script")


def show(value: float | None, form: str = ".3g", unit: str = "") -> str:
    """A number for people; – where there is none."""
    return "–" if value is None else f"{value:{form}}{unit}"
