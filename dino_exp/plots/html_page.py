"""Pages of figures that need nothing beside themselves: no network, no other file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from dino_exp.plots.drawing import CELLS, Figure, library, theme

HERE = Path(__file__).parent


def render(
    template: str,
    figures: Sequence[Figure],
    refresh: float | None,
    data: dict[str, Any] | None = None,
    **values: Any,
) -> str:
    """A page that needs nothing beside itself.

    Args:
        template: a file in `templates`, made of base.html and parts.html.
        figures: those that the template draws.
        refresh: seconds after which an open page loads itself again; None is never.
        data: what page.js needs beside the figures.
        values: what the template needs.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    content = {
        "figures": {
            figure.name: {"renderer": figure.renderer, "spec": _packed(figure)} for figure in figures
        },
        "themes": {"light": theme(dark=False), "dark": theme(dark=True)},
        **(data or {}),
    }
    return environment.get_template(template).render(
        content=_json(content),
        library=library() if figures else "",
        script=(HERE / "templates" / "page.js").read_text(),
        style=(HERE / "templates" / "page.css").read_text(),
        refresh=refresh,
        **values,
    )


def _packed(figure: Figure) -> dict[str, Any]:
    """The spec with its rows as columns, whose words are numbered: a fifth of the size.

    Without the cells of maps, which the page has once for all maps.
    """
    datasets = figure.spec["datasets"]
    rows = {name: [] if name == CELLS else datasets[name] for name in datasets}
    packed = {name: _columns(each) for name, each in rows.items()}
    return {**figure.spec, "description": figure.description, "datasets": packed}


def _json(content: Any) -> str:
    """JSON for a script element: strict, and without anything that could end it."""
    text = json.dumps(_finite(content), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        if all(isinstance(value, str) for value in values):
            numbers: dict[Any, int] = {}
            places = [numbers.setdefault(value, len(numbers)) for value in values]
            columns[key] = {"of": places, "words": list(numbers)}
        else:
            columns[key] = values
    return columns


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
