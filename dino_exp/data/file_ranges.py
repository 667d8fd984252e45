"""Ranges of bytes in large files, read in any order by any number of threads and processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dino_exp.data.storage import spread
from dino_exp.regular_file import check_regular

OPEN_FILES = 128
"""Files that one process keeps open; the usual limit for all its files is 1,024."""


class Stamp(NamedTuple):
    """A file's path, size and times, by which a changed file is noticed."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    """The last change of anything, its name and permissions included; unlike the other it cannot be set."""


def stamps(paths: Iterable[Path]) -> list[Stamp]:
    """Return the files' stamps; raises OSError, also for a pipe or a device, for which readers would wait."""
    found = []
    for path in paths:
        status = path.stat()
        check_regular(status, path)
        found.append(Stamp(str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return found


class FileRanges:
    """Files of which ranges of bytes are read; a copy in another process opens them again."""

    def __init__(self, files: Sequence[Stamp]) -> None:
        self.files = list(files)
        self._open: dict[int, _Descriptor] = {}

    def read(self, number: int, offset: int, length: int) -> bytes:
        """Return `length` bytes of file `number`; raises OSError, also if the file has changed."""
        file = self._descriptor(number)
        try:
            status, known = os.fstat(file.number), self.files[number]
            if (status.st_size, status.st_mtime_ns) != (known.size, known.mtime_ns):
                raise OSError("the file was changed after the run began")
            content = os.pread(file.number, length, offset)
        except OSError:
            self._open.pop(number, None)  # of a network disk that was away it stays unreadable
            raise
        if len(content) != length:
            raise OSError(f"the file ends at {offset + len(content):,} bytes, before {offset + length:,}")
        return content

    def some_paths(self) -> list[str]:
        """Return the paths of a few of the files."""
        return [self.files[number].path for number in spread(len(self.files))]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": {}}

    def _descriptor(self, number: int) -> _Descriptor:
        file = self._open.get(number)
        if file is None:
            file = _Descriptor(self.files[number].path)
            if len(self._open) >= OPEN_FILES:
                self._open.popitem()  # closed when the last thread that reads from it lets go
            self._open[number] = file
        return file


class _Descriptor:
    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # `os` is gone when Python ends
        if hasattr(self, "number"):
            close(self.number)
