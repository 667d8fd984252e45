"""Where a run prints: a terminal, or the lines of a log file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from dino_exp.parallel import distributed

LOG_WIDTH = 200
"""Columns of a log file, which has no terminal to ask; wide enough that no line of ours is broken."""


LOG_LINES = 20
"""Lines that a whole run writes where there is no terminal."""


def console_for_a_run() -> Console:
    """The terminal, or lines of `LOG_WIDTH` where the output goes to a file; nothing but on rank 0."""
    if not distributed.is_main():
        return Console(quiet=True, force_terminal=False)
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=LOG_WIDTH)


@contextmanager
def log_lines_on(console: Console) -> Iterator[None]:
    """Print what the package logs through `console`, above the live line instead of across it."""
    logger = logging.getLogger("dino_exp")
    handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def table(title: str, rows: Mapping[str, Any]) -> Table:
    """A two-column table of names and values."""
    shown = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows.items():
        shown.add_row(name, value if isinstance(value, Text) else str(value))
    return shown
