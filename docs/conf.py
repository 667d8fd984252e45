"""Sphinx configuration; `make docs` builds the site into `site/`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import reference_pages  # noqa: E402

import dino_exp  # noqa: E402

project = "dino-exp"
author = "the dino-exp authors"
copyright = author
release = version = dino_exp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
default_role = "code"
add_module_names = False
toc_object_entries = False
python_maximum_signature_line_length = 120
suppress_warnings = ["ref.python"]  # some names of classes and fields are common

highlight_language = "text"
smartquotes = False  # -- and quotation marks belong to commands
html_theme = "furo"
html_title = f"dino-exp {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["style.css"]
html_css_files = ["style.css"]

reference_pages.write(HERE / "reference")


def from_google_style(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite `Args:` and the like; not in fields, where Napoleon takes what is before a colon for a type."""
    if what not in ("attribute", "data", "property"):
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, thing, options).lines()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", from_google_style)
