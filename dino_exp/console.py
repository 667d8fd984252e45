"""The one kind of console: a terminal, or the lines of a log file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dino_exp.streams import visible

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
    "pruned": "magenta",
}
"""Styles by state of a run, in the order in which states are counted."""
LOG_LINES = 20
"""Progress lines that an entire run writes without a terminal."""


class Console(rich.console.Console):  # noqa: TID251  # this is the one
    """A console for words of anybody: brackets are no markup, and control characters are shown, not obeyed.

    Args:
        stderr: whether it writes to standard error instead of standard output.
        file: a stream to write to instead of both.
        settings: further ones of rich.
    """

    def __init__(self, *, stderr: bool = False, file: IO[str] | None = None, **settings: Any) -> None:
        file = file or (sys.stderr if stderr else sys.stdout)
        while (inner := getattr(file, "rich_proxied_file", None)) is not None:
            file = inner
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **how: Any) -> Text:
        """Return a string as rich's text; rich itself would remove some control characters."""
        return super().render_str(visible(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of what is printed; also of rich's own texts, which are no strings."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


def a_console() -> Console:
    """Return the terminal, or lines of `LOG_WIDTH` if the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=LOG_WIDTH)


class _Lines(logging.Handler):
    """A handler that prints messages on a console, above its live line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record))


@contextmanager
def log_lines_on(console: Console) -> Iterator[None]:
    """Print the package's log messages through `console`, above the live line."""
    logger = logging.getLogger("dino_exp")
    handler = _Lines(console)
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
