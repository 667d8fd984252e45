"""The console of a run: a terminal, or the lines of a log file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

LOG_WIDTH = 200
"""Columns of a log file; wide enough that no line of ours is broken."""
STATE_STYLES = {
    "finished": "green",
    "running": "cyan",
    "pending": "dim",
    "preempted": "yellow",
    "collapsed": "red",
    "failed": "bold red",
    "lost": "bold red",
    "cancelled": "magenta",
}
"""Styles by state of a run, in the order in which states are counted."""
LOG_LINES = 20
"""Progress lines that an entire run writes without a terminal."""


def console_for_a_run() -> Console:
    """Return `a_console()` on rank 0, and a quiet one elsewhere."""
    from dino_exp.parallel import distributed  # imports torch

    return a_console() if distributed.is_main() else Console(quiet=True, force_terminal=False)


def a_console() -> Console:
    """Return the terminal, or lines of `LOG_WIDTH` if the output goes to a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=LOG_WIDTH)


@contextmanager
def log_lines_on(console: Console) -> Iterator[None]:
    """Print the package's log messages through `console`, above the live line."""
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
    """Return a two-column table of names and values."""
    shown = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    shown.add_column(style="dim", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows.items():
        shown.add_row(name, value if isinstance(value, Text) else str(value))
    return shown
