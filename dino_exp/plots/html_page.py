"""Self-contained HTML pages of figures: no network, no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from dino_exp.plots.drawing import CELLS, Figure, library, theme
from dino_exp.runs.run_directory import to_json

HERE = Path(__file__).parent


def render(
    template: str,
    figures: Sequence[Figure],
    refresh: float | None,
    data: dict[str, Any] | None = None,
    **values: Any,
) -> str:
    """Return a self-contained page.

    Args:
        template: a file in `templates` that extends base.html.
        figures: what the template draws.
        refresh: seconds after which an open page reloads itself; None is never.
        data: what page.js needs besides the figures.
        values: variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    packed = {figure.name: {"renderer": figure.renderer, "spec": _packed(figure)} for figure in figures}
    themes = {"light": theme(dark=False), "dark": theme(dark=True)}
    content = {"figures": packed, "themes": themes, **(data or {})}
    return environment.get_template(template).render(
        content=_json(content),
        library=library() if figures else "",
        script=(HERE / "templates" / "page.js").read_text("utf-8"),
        style=(HERE / "templates" / "page.css").read_text("utf-8"),
        refresh=refresh,
        **values,
    )


def _packed(figure: Figure) -> dict[str, Any]:
    """Return the spec with rows as columns and words as numbers, a fifth of the size.

    The cells of maps are dropped, because the page has them once for all maps.
    """
    datasets = figure.spec["datasets"].items()
    packed = {name: as_columns([] if name == CELLS else rows) for name, rows in datasets}
    return {**figure.spec, "description": figure.description, "datasets": packed}


def _json(content: Any) -> str:
    """Return JSON for a script element: strict, and without anything that could end the element."""
    text = to_json(content, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def as_columns(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rows by column; a column of words as indices into its distinct words."""
    columns: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        if all(isinstance(value, str) for value in values):
            numbers: dict[Any, int] = {}
            indices = [numbers.setdefault(value, len(numbers)) for value in values]
            columns[key] = {"indices": indices, "words": list(numbers)}
        else:
            columns[key] = values
    return columns
