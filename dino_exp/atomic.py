"""Files and folders that are either complete or absent, whatever stops the program that writes them.

What is being written has a name that nothing else has, `.<name>.<32 hex digits>.partial`, and is locked by
its writer. What a killed process has left is thereby known, and the next process that writes into the same
folder removes it. Nothing else is ever removed, and links are not followed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import IO

HOST = sha256(socket.gethostname().encode(errors="replace")).hexdigest()[:8]
PARTIAL = re.compile(r"\..+\.([0-9a-f]{8})[0-9a-f]{24}\.partial", re.DOTALL)
"""Names of what is being written; the first digits tell the host."""
ABANDONED_SECONDS = 7 * 86400
"""Age at which what another host was writing is given up: its locks may be invisible here."""
NAME_BYTES = 200
"""Bytes of the final name in the temporary one, which a file system limits to 255."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write `path` by way of a temporary file in the same folder, which is flushed to disk and renamed.

    What `write` raises is raised again, and leaves `path` as it was; an OSError names `path`, also where a
    library such as torch has wrapped it in an error of its own.
    """
    make_folder(path.parent)
    remove_abandoned(path.parent)
    temporary = path
    try:
        # Not tempfile, whose files only their owner can read, and others look into run directories too.
        temporary, descriptor = _new_partial(path, lambda new: os.open(new, _NEW_FILE, 0o666))
        with open(descriptor, "wb") as file:  # noqa: PTH123 (a descriptor)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        flush(path.parent)
    except BaseException as raised:
        if temporary != path:
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
        flush(folder.parent)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; lone surrogates, as in undecodable paths, become question marks."""
    write_atomically(path, lambda file: file.write(text.encode(errors="replace")))


@contextmanager
def complete_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which takes the place of `path` if the block succeeds.

    A temporary folder that is empty or missing at the end changes nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent)

    def new_folder(new: Path) -> int:
        new.mkdir()
        return os.open(new, os.O_RDONLY)

    temporary, descriptor = _new_partial(path, new_folder)
    try:
        yield temporary
        if temporary.is_dir() and any(temporary.iterdir()):
            for each in temporary.rglob("*"):
                if not each.is_symlink():
                    flush(each)
            flush(temporary)
            earlier = _partial_name(path)
            with suppress(FileNotFoundError):
                path.rename(earlier)
            temporary.rename(path)
            flush(path.parent)
            remove(earlier)
    finally:
        remove(temporary)
        os.close(descriptor)


def link_atomically(existing: Path, path: Path) -> None:
    """Give a file the name `path` too, in place of what has it.

    Raises OSError, with nothing changed, where the file system has no hard links.
    """
    temporary = _partial_name(path)
    try:
        os.link(existing, temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        remove(temporary)  # it stays if both were the same file before


def flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk, where the system lets this user do so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # it can be written, but not read
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, as far as it is there and can be removed."""
    with suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes were writing in a folder; each process looks once into each folder."""
    _remove_abandoned(folder.absolute())


@cache
def _remove_abandoned(folder: Path) -> None:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = PARTIAL.fullmatch(entry.name)
            if found and (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                _remove_unless_written(Path(entry.path), found[1])


def _remove_unless_written(path: Path, host: str) -> None:
    with suppress(OSError), _shared_lock(path) as lock:
        if lock == "held":
            return
        changed = max(each.lstat().st_mtime for each in (path, *path.rglob("*")))
        if (lock == "free" and host == HOST) or changed < time.time() - ABANDONED_SECONDS:
            remove(path)


def is_locked(path: Path) -> bool:
    """Return whether a running process holds a lock on a file.

    It works without permission to write, and creates nothing. A missing file, a link, and a file whose lock
    cannot be seen, are not locked.
    """
    try:
        with _shared_lock(path) as lock:
            return lock == "held"
    except OSError:
        return False


@contextmanager
def _shared_lock(path: Path) -> Iterator[str]:
    """Lock a file or folder against writers, and yield "free"; "held" if one has it, "unknown" without locks.

    Of one that is open for reading, network file systems give only a shared lock.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            lock = "free"
        except BlockingIOError:
            lock = "held"
        except OSError:
            lock = "unknown"
        yield lock
    finally:
        os.close(descriptor)


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def _partial_name(path: Path) -> Path:
    short = os.fsdecode(os.fsencode(path.name)[:NAME_BYTES])
    return path.with_name(f".{short}.{HOST}{token_hex(12)}.partial")


def _new_partial(path: Path, create: Callable[[Path], int]) -> tuple[Path, int]:
    """Create what is to become `path`, and return its temporary path and its descriptor, which is locked."""
    while True:
        temporary = _partial_name(path)
        descriptor = create(temporary)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.lexists(temporary):
            return temporary, descriptor
        os.close(descriptor)  # another process removed it before it was locked
