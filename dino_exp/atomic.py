"""Files that are either complete or absent, whatever stops the program that writes them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write `path` by way of a temporary file in the same folder, which is flushed to disk and renamed.

    What `write` raises is raised again, and leaves `path` as it was; an OSError names `path`, also where a
    library such as torch has wrapped it in an error of its own.
    """
    make_folder(path.parent)
    # Not tempfile, whose files only their owner can read, and others look into run directories too.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    except BaseException as raised:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        error = _said_by_the_file(raised)
        if isinstance(error, OSError) and error.errno and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(path)  # a failed write does not know its file
        if error is raised:
            raise
        raise error from None


def _said_by_the_file(error: BaseException) -> BaseException:
    """Return the OSError for which torch has raised a RuntimeError of its own; other errors as they are."""
    cause: BaseException | None = error
    while isinstance(cause, RuntimeError):
        cause = cause.__cause__ or cause.__context__
    return cause if isinstance(cause, OSError) else error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in an OSError of a write or flush, which does not know its file."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = os.fspath(path)
        raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they are missing, and flush the new entries to disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_folder(folder.parent)


def flush_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, where the system can."""
    try:
        folder = os.open(path, os.O_RDONLY)
    except PermissionError:  # it can be written, but not read
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; lone surrogates, as in undecodable paths, become question marks."""
    write_atomically(path, lambda file: file.write(text.encode(errors="replace")))
