"""Files that are either complete or absent, whatever stops the program that writes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO
from uuid import uuid4


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write `path` by way of a temporary file in the same folder, which is flushed to disk and renamed.

    What `write` raises is raised again, and leaves `path` as it was; an OSError names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files only their owner can read, and others look into run directories too.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(path)  # a failed write does not know its file
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Have the system write a file, or the entries of a folder, to the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; lone surrogates, as in undecodable paths, become question marks."""
    write_atomically(path, lambda file: file.write(text.encode(errors="replace")))
