"""Errors that a user can fix, and how the programs report them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

USER_ERROR = 2


class UserError(Exception):
    """A configuration or file that cannot work; the message names it, its value, and what would be right."""


FAILED = 1


INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def refuse(errors: Sequence[str]) -> int:
    """Print one line per problem."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for error in errors:
        console.print(Text(error, style="red"))
    return USER_ERROR


def warn(warnings: Sequence[str]) -> None:
    """Print one line per warning."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for warning in warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
