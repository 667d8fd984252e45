"""The one console: it shows what others wrote, and obeys nothing of it."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dino_exp.console import Console, log_lines_on, table

HOSTILE = "[red]\x1b[31m\x1b]0;title\x07[/nothing] :smile: \x9b2J\u202eabc\udce9"
SHOWN = r"[red]\x1b[31m\x1b]0;title\x07[/nothing] :smile: \x9b2J\u202eabc\xe9"

OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def in_a_cell(text: str) -> Table:
    grid = Table.grid()
    grid.add_row(text)
    return grid


@pytest.mark.parametrize(
    "printed",
    [HOSTILE, in_a_cell(HOSTILE), Table("head", title=HOSTILE, width=150), table("title", {HOSTILE: 1})],
    ids=["text", "cell", "title", "row"],
)
def test_text_of_others_is_shown_as_it_is(printed: RenderableType) -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(printed)
    assert SHOWN in written(console)
    assert OBEYED.search(written(console)) is None


def test_so_are_log_messages() -> None:
    console = Console(file=io.StringIO(), width=200)
    with log_lines_on(console):
        logging.getLogger("dino_exp.data").info(
            "unreadable: %s", HOSTILE[:-1]
        )  # pytest cannot send a surrogate
    assert written(console) == f"unreadable: {SHOWN[:-4]}\n"


def test_on_a_terminal_only_our_own_styles_are_escape_sequences() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="standard")
    console.print(HOSTILE, style="bold")
    assert written(console) == f"\x1b[1m{SHOWN}\x1b[0m\n"
    with Live(Text(f"live {HOSTILE}", "red"), console=console, auto_refresh=False):
        pass
    assert "live [red]\\x1b[31m\\x1b]0;title[/nothing]" in written(console)
