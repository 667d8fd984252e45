"""Errors that a user can fix, how programs report them, and their exit codes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class UserError(Exception):
    """A configuration or file that cannot work; the message names it, its value, and the fix."""


def refuse(errors: Sequence[str]) -> int:
    """Print one line per problem, and return the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for error in errors:
        console.print(Text(error, style="red"))
    return USER_ERROR


def warn(warnings: Sequence[str]) -> None:
    """Print one line per warning."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for warning in warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
