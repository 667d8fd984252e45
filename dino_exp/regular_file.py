"""Files of data sets from elsewhere, maybe pipes, devices or enormous: read without waiting, bounded."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

MOST_BYTES = 2**30
"""Size of the largest file that is read at once: the largest image in 16 bits, uncompressed, has as much."""


def check_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Raise OSError unless the status is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe, socket, device or folder, not a file", os.fspath(path))


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading; raises OSError for anything else, without waiting for a pipe's other end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:  # NUL in the path
        raise OSError(errno.EINVAL, str(error), os.fspath(path)) from error
    try:
        check_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """Return the content of a file; raises OSError for anything else, and for more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, too_large(size, most), os.fspath(path))
        return file.read()


def too_large(size: int, most: int = MOST_BYTES) -> str:
    """Return in words that something of `size` bytes is not read."""
    return f"{size:,} bytes, more than the {most:,} that are read"


def is_plain_name(name: str) -> bool:
    """Return whether a name from a list is that of a file or folder, and leads to no other place."""
    return name not in ("", ".", "..") and name == Path(name).name and "\0" not in name


def path_below(folder: str, path: str) -> str | None:
    """Return the path of a file that a data set in `folder` names; None for one outside of the folder.

    Links in the folder are followed: they are the work of whoever put the data set there.
    """
    folder = os.path.normpath(folder)
    found = os.path.normpath(os.path.join(folder, path))  # noqa: PTH118 (once per image)
    return found if found.startswith(os.path.join(folder, "")) else None  # noqa: PTH118
