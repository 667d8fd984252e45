"""Batches that runs of one user share through memory: each is made once, and copied by the others.

Runs whose batches agree meet in a folder of a file system in memory, /dev/shm. It is named after all that
determines the batches, and holds

- `<token>.run` for each run: locked while the run lives; its content is the step that the run needs next;
- `<step>.claim` for a batch that is being made: locked by the process that makes it;
- `<step>.batch` for a complete one: its claim, renamed.

No wait is without bound, and what is missing or damaged is made: no run depends on another one. Locks end
with their process, so what a dead one has left is known.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import stat
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import numpy as np

from dino_exp.atomic import is_locked

log = logging.getLogger(__name__)

Arrays = Sequence[np.ndarray]
Layout = Sequence[tuple[type[np.generic], tuple[int, ...]]]
"""Type and shape of each array of a batch but the last, which is int64 and of any length."""
Make = Callable[[int], Arrays]
"""Makes the batch of a step."""

MADE, TAKEN, FAILED = range(3)
"""Where a batch is from: this run, another one, or this run because memory has run out."""

MOST_SHARE, MOST_BYTES, MOST_BATCHES = 1 / 4, 2**30, 256
"""Limits of a stream: share of the memory that is free when a run joins, bytes, and batches."""
AHEAD = 16
"""How many steps ahead a process makes a batch while it waits for another one."""
LEAST_PATIENCE, PATIENCE = 3.0, 3
"""How long a batch of another process is waited for: seconds, or so many times the time that it takes."""
POLL_SHARE, POLL_SECONDS, POLLS = 1 / 50, (1e-3, 2.5e-2), 20
"""Between two looks for a batch: a share of the time that making one takes, and its bounds. After so many
looks, claims and other runs are looked at, which takes longer."""

OWN_FILES = re.compile(r"[0-9a-f]{32}\.run|\d+\.(claim|batch)")
HEADER = struct.Struct("<8s32sQQ")
"""MAGIC, the token of the run that made it, the step, and the length of the last array."""
MAGIC = b"dinoexp1"
POSITION = struct.Struct("<Q")


class SharedBatches:
    """One run's part in the batches of a stream.

    Processes that are forked after it has joined, a run's loader processes, belong to the run.

    Args:
        memory: folder of a file system in memory.
        stream: digest of everything that determines the batches.
        layout: of a batch.
        step: the first that this run needs.
        stop_step: the one after its last.

    Raises:
        OSError: there is no such memory, or not enough of it is free for two batches.
    """

    def __init__(self, memory: Path, stream: str, layout: Layout, step: int, stop_step: int) -> None:
        self.layout, self.size, self.stop_step = layout, _bytes_of(layout), stop_step
        own = _private_folder(memory)
        for folder in own.iterdir():
            _remove_unless_used(folder)
        about = os.statvfs(own)
        bound = min(about.f_bavail * about.f_frsize * MOST_SHARE, MOST_BYTES)
        self.room = min(int(bound) // self.size, MOST_BATCHES)
        """How many batches there may be; 0 once memory has run out."""
        if self.room < 2:
            too_little = f"too little is free for batches of {self.size / 2**20:,.1f} MiB"
            raise OSError(0, too_little, str(memory))
        self.count, self.taken = 0, 0
        """Batches that this run has had, and how many of them others have made."""
        self.while_waiting: Callable[[float], None] = lambda waited: None
        """Called twice a second with the seconds waited; may raise."""
        self.folder = own / stream
        self._name, self._position = _new_run(self.folder)
        self._token = Path(self._name).stem.encode()
        self._seconds_to_make, self._failed = 0.0, False
        self.needs_from(step)

    def leave(self) -> None:
        """End this run's part. The last one removes the folder."""
        _unlink(self.folder / self._name)
        os.close(self._position)
        self._position = -1
        _remove_unless_used(self.folder)
        with suppress(OSError):
            self.folder.parent.rmdir()

    @property
    def others(self) -> list[int]:
        """The steps that the other runs need next."""
        found = []
        for path in _files(self.folder, "run"):
            if path.name != self._name and is_locked(path):
                with suppress(OSError, struct.error):
                    found.append(POSITION.unpack(path.read_bytes())[0])
        return found

    def needs_from(self, step: int) -> None:
        """Say that this run needs no batch before `step` any more, and remove those that no run needs."""
        os.pwrite(self._position, POSITION.pack(step), 0)
        first = min([step, *self.others])
        for path in (*_files(self.folder, "batch"), *_files(self.folder, "claim")):
            if int(path.stem) < first:
                _unlink(path)

    def delivered(self, step: int, source: int) -> None:
        """Count a batch that the run has, after which it does not need it here any more."""
        self.count, self.taken = self.count + 1, self.taken + (source == TAKEN)
        if source == FAILED and not self._failed:
            log.warning(
                "%s: no memory is left; this run makes all its batches itself.", self.folder.parents[1]
            )
        self._failed = source == FAILED
        self.needs_from(step + 1)

    def get(self, step: int, make: Make) -> tuple[Arrays, int]:
        """Return the batch of a step, and where it is from.

        While another process makes it, this one makes one of those that will be needed next.
        """
        began, looked = time.monotonic(), 0.0
        while True:
            wanted = self._is_wanted(step)  # asked first: who does not need it any more has published it
            found = self._read(step)
            if found is not None:
                return found
            waited = time.monotonic() - began
            if not wanted or waited > max(LEAST_PATIENCE, PATIENCE * self._seconds_to_make):
                return self._timed(make, step), MADE if self.room else FAILED
            made = self._make_if_free(step, make)
            if made is not None:
                return made, MADE if self.room else FAILED
            if waited >= looked + 0.5:
                looked = waited
                self.while_waiting(waited)
            if not self._make_another(step, make):
                self._wait_a_little(step)

    def _is_wanted(self, step: int) -> bool:
        """Return whether another run will come to this step while there is room for its batch."""
        return any(step - self.room < other <= step for other in self.others)

    def _make_another(self, step: int, make: Make) -> bool:
        """Make the first batch after `step` that nobody has made or makes; return whether there is one."""
        last = min(step + min(AHEAD, self.room // 2), self.stop_step - 1)
        return any(
            not self._path(other, "batch").exists() and self._make_if_free(other, make) is not None
            for other in range(step + 1, last + 1)
        )

    def _wait_a_little(self, step: int) -> None:
        """Wait until the batch is complete, but not for long: its maker may have ended."""
        least, most = POLL_SECONDS
        for _ in range(POLLS):
            time.sleep(min(max(least, POLL_SHARE * self._seconds_to_make), most))
            if self._path(step, "batch").exists():
                return

    def _make_if_free(self, step: int, make: Make) -> Arrays | None:
        """Make a batch for all; None if another process makes it or has made it, or memory has run out."""
        path = self._path(step, "claim")
        claim = self._claim(step, path)
        if claim is None:
            return None
        try:
            arrays = self._timed(make, step)
            self._publish(claim, step, arrays)
            return arrays
        except BaseException:
            _unlink(path)
            raise
        finally:
            os.close(claim)

    def _timed(self, make: Make, step: int) -> Arrays:
        began = time.monotonic()
        arrays = make(step)
        self._seconds_to_make = time.monotonic() - began
        return arrays

    def _claim(self, step: int, path: Path) -> int | None:
        """Return a descriptor of the claim, locked, with memory for the batch; None as in `_make_if_free`."""
        try:
            claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:  # somebody has removed the folder
            self.room = 0
            return None
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(claim).st_ino == path.stat().st_ino:  # else it has just been renamed
                if not self._path(step, "batch").exists():
                    os.posix_fallocate(claim, 0, self.size)  # nobody is to wait for what does not fit
                    return claim
                _unlink(path)
        except (BlockingIOError, FileNotFoundError):  # it is being made, or has just been renamed
            pass
        except OSError:
            self.room = 0
            _unlink(path)
        os.close(claim)
        return None

    def _publish(self, claim: int, step: int, arrays: Arrays) -> None:
        complete = sorted(_files(self.folder, "batch"), key=lambda path: int(path.stem))
        for path in complete[: max(0, len(complete) + 1 - self.room)]:
            _unlink(path)
        path, length = self._path(step, "claim"), len(arrays[-1])
        try:
            for array, (kind, shape) in zip(arrays, self.layout, strict=False):
                if (array.dtype, array.shape) != (kind, shape):
                    raise OSError(f"{array.dtype} {array.shape}, not {kind} {shape}")
            with open(claim, "wb", closefd=False) as file:
                file.write(HEADER.pack(MAGIC, self._token, step, length))
                for array in arrays:
                    file.write(_as_bytes(array))
            os.ftruncate(claim, _bytes_of(self.layout, length))
            path.rename(self._path(step, "batch"))
        except OSError:
            self.room = 0
            _unlink(path)

    def _read(self, step: int) -> tuple[Arrays, int] | None:
        """Return a complete batch as `get` does; None if there is none. A damaged one is removed."""
        path = self._path(step, "batch")
        try:
            with path.open("rb") as file:
                magic, maker, of_step, length = HEADER.unpack(file.read(HEADER.size))
                size = os.fstat(file.fileno()).st_size
                if (magic, of_step, size) == (MAGIC, step, _bytes_of(self.layout, length)):
                    arrays = [np.empty(shape, kind) for kind, shape in (*self.layout, (np.int64, (length,)))]
                    if all(file.readinto(_as_bytes(array)) == array.nbytes for array in arrays):
                        return arrays, MADE if maker == self._token else TAKEN
        except FileNotFoundError:
            return None
        except (OSError, struct.error):
            pass
        _unlink(path)
        return None

    def _path(self, step: int, kind: str) -> Path:
        return self.folder / f"{step}.{kind}"


def _bytes_of(layout: Layout, length: int = 0) -> int:
    """Return the bytes of a batch's file, whose last array has this length."""
    fixed = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in layout)
    return HEADER.size + fixed + 8 * length


def _as_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _private_folder(memory: Path) -> Path:
    """Return this user's folder, which nobody else can enter."""
    folder = memory / f"dino-exp-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise OSError(0, "not a folder that is yours alone", str(folder))
    return folder


def _new_run(folder: Path) -> tuple[str, int]:
    """Return the name of a new run's file, and its descriptor, which is locked."""
    while True:
        path = folder / f"{token_hex(16)}.run"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:  # the last run has just removed the folder
            _private_folder(folder.parent.parent)
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path.name, descriptor
        os.close(descriptor)  # it was removed before it was locked


def _files(folder: Path, kind: str) -> list[Path]:
    """Return our files of a kind; none where somebody has removed the folder."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 (called in every step, and faster)
    except OSError:
        return []
    return [folder / name for name in names if name.endswith(kind) and OWN_FILES.fullmatch(name)]


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _remove_unless_used(folder: Path) -> None:
    """Remove a folder in which no run is alive, with our files."""
    if any(is_locked(path) for path in _files(folder, "run")):
        return
    for kind in ("run", "claim", "batch"):
        for path in _files(folder, kind):
            _unlink(path)
    with suppress(OSError):
        folder.rmdir()
