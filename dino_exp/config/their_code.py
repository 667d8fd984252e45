"""Errors in code that is not ours: one line with file and line, and below it the calls of their code."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dino_exp.errors import MachineError, UserError, known_words

OURS = str(Path(__file__).parents[1])


@contextmanager
def in_words(what: str) -> Iterator[None]:
    """Raise whatever others' code raises in the block as a `UserError` that begins with `what`.

    A `UserError` stays as it is worded. A missing module or file is named with the line; all else is shown
    with the calls that led to it, which its author needs and the user can pass on.
    """
    try:
        yield
    except MachineError:
        raise
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    except ModuleNotFoundError as error:
        raise UserError(f"{what}: imports {error.name}, which is not installed ({_where(error)}).") from None
    except SyntaxError as error:
        raise UserError(f"{what}: {error.msg} ({error.filename}, line {error.lineno}).") from None
    except (Exception, SystemExit) as error:
        known = known_words(error)
        if known:
            raise UserError(f"{what}: {known} ({_where(error)}).") from error
        first = (str(error).strip().splitlines() or [""])[0]
        kind = f"{type(error).__name__}: {first}" if first else type(error).__name__
        calls = "".join(traceback.format_list(_frames(error))).rstrip()
        raise UserError(f"{what}: {kind} ({_where(error)}).\n{calls}".rstrip()) from error


def place_of(thing: Any) -> str:
    """Return file and line of a function or class; its name where they are not known, as in a notebook."""
    try:
        return f"{inspect.getsourcefile(thing)}, line {inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):
        return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', thing)}"


def file_of(thing: Any) -> str | None:
    """Return the file that the code of a module, function or class is in; None if it is in none."""
    try:
        path = inspect.getsourcefile(thing)
    except TypeError:
        return None
    return path if path is not None and os.path.isfile(path) else None  # noqa: PTH113 (of Python's own)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the calls that led to an error, without ours and Python's at the start."""
    frames = list(traceback.extract_tb(error.__traceback__))
    while frames and (frames[0].filename.startswith((OURS, "<frozen")) or "importlib" in frames[0].filename):
        del frames[0]
    return frames


def _where(error: BaseException) -> str:
    """Return the innermost line that is not a library's."""
    frames = _frames(error)
    libraries = (sys.prefix, sys.base_prefix)
    theirs = [each for each in frames if not each.filename.startswith(libraries)] or frames
    return f"{theirs[-1].filename}, line {theirs[-1].lineno}" if theirs else "at its start"
