"""Errors that a user can fix, how programs report them, and their exit codes."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

FAILED = 1
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class UserError(Exception):
    """A configuration or file that cannot work; the message names it, its value, and the fix."""

    exit_code = USER_ERROR


class MachineError(UserError):
    """A disk, process or limit of the machine that failed under a program; the same command resumes."""

    exit_code = FAILED


MEANINGS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk or network file system failed",
    errno.ESTALE: "the network file system lost the file",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENOENT: "no such file or folder",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many open files (see ulimit -n)",
    errno.ENOMEM: "not enough memory",
}
"""What operating systems' errors mean to a user."""


def in_words(error: OSError) -> str:
    """Return an operating system's error as "path: meaning", without the path where it is unknown."""
    meaning = MEANINGS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    return meaning if error.filename is None else f"{os.fsdecode(error.filename)}: {meaning}"


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
