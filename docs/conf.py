"""Sphinx configuration; `make docs` builds the site into `site/`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import reference_pages  # noqa: E402

import dino_exp  # noqa: E402

project = "dino-exp"
author = "the dino-exp authors"
copyright = author
release = version = dino_exp.__version__

extensions = ["myst_parser"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

add_module_names = False
python_maximum_signature_line_length = 88
suppress_warnings = ["ref.python"]  # annotations name classes without their module, and some names are common

highlight_language = "text"
smartquotes = False  # -- and quotation marks belong to commands
html_theme = "furo"
html_title = f"dino-exp {release}"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["style.css"]
html_css_files = ["style.css"]

reference_pages.write(HERE / "reference")
