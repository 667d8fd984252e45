"""Errors that a user can fix, how programs report them, and their exit codes."""

from __future__ import annotations

import errno
import functools
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dino_exp import streams
from dino_exp.console import Console

FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class UserError(Exception):
    """A configuration or file that cannot work; the message names it, its value, and the fix."""

    exit_code = 2


USER_ERROR = UserError.exit_code


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
    errno.EEXIST: "something else has this name",
    errno.EISDIR: "it is a folder",
    errno.ELOOP: "a link that is not followed",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EMFILE: "too many open files (see ulimit -n)",
    errno.ENOMEM: "not enough memory",
    errno.EPIPE: "nobody reads it any more",
    errno.EFBIG: "the file would be larger than allowed (see ulimit -f)",
    errno.ENOTCONN: "the file system is no longer connected",
}
"""What operating systems' errors mean to a user."""


def in_words(error: OSError) -> str:
    """Return an operating system's error as "path: meaning", without the path where it is unknown."""
    meaning = MEANINGS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    return meaning if error.filename is None else f"{os.fsdecode(error.filename)}: {meaning}"


@contextmanager
def refusing(remedy: str) -> Iterator[None]:
    """Raise an operating system's error in the block as a `UserError`: in words, and with what would help."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{in_words(error)}; {remedy}.") from error


def known_words(error: BaseException) -> str | None:
    """Return `in_words` of an operating system's error whose meaning is known; None for all others."""
    return in_words(error) if isinstance(error, OSError) and error.errno in MEANINGS else None


def report(error: BaseException, remedy: str = "") -> None:
    """Print an unexpected error: in words what a disk or the machine did, all else with its traceback."""
    message = known_words(error)
    if message:
        refuse([f"{message}. {remedy}".rstrip()])
    else:
        traceback.print_exception(error)


def refuse(errors: Sequence[str]) -> int:
    """Print one line per problem, and return the exit code."""
    console = Console(stderr=True, soft_wrap=True)
    for error in errors:
        console.print(error, style="red")
    return USER_ERROR


def warn(warnings: Sequence[str]) -> None:
    """Print one line per warning."""
    console = Console(stderr=True, soft_wrap=True)
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow")


def program(main: Callable[[Sequence[str] | None], int]) -> Callable[..., int]:
    """Make `main` a program whose product is what it prints: it fails if that could not be written.

    A reader that wants no more, as `head`, is no failure.
    """

    @functools.wraps(main)
    def protected(argv: Sequence[str] | None = None) -> int:
        streams.protect()
        try:
            code = main(argv)
        except UserError as error:
            return refuse([str(error)])
        except OSError as error:  # another user's folder, a full disk
            if error.errno not in MEANINGS:
                raise
            return refuse([f"{in_words(error)}."])
        lost = streams.failure()
        if code or lost is None or lost.errno == errno.EPIPE:
            return code
        refuse([f"standard output: {in_words(lost)}."])
        return FAILED

    return protected
