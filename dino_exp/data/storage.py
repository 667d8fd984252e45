"""Reading from a storage that may be away for a while: a network disk, or a volume that is mounted again."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from dino_exp.errors import MachineError, in_words

log = logging.getLogger(__name__)

Result = TypeVar("Result")

NETWORK = (
    *("ESTALE", "EREMOTEIO", "ENOTCONN", "ETIMEDOUT", "ETIME", "EHOSTDOWN", "EHOSTUNREACH", "ENOLINK"),
    *("ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ENETDOWN", "ENETUNREACH", "ENETRESET", "ESHUTDOWN"),
    *("EIO", "EAGAIN", "EBUSY", "ENODEV", "ENXIO", "ECOMM", "EPIPE"),
)
PASSING = {getattr(errno, name) for name in NETWORK if hasattr(errno, name)}
"""Errors that a network disk returns while it is away; EIO may also be a bad place on a local disk."""
OF_THE_PROCESS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
"""Errors that say nothing about a file."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0
SURE_SECONDS = 6
"""How long an error that may pass is waited for before the file itself can be held to be bad."""
GIVE_UP_SECONDS = 300
"""How long the storage may be away. A restarted server takes a minute or two."""
GIVE_UP_AT_START = 10
"""How long before anything was read, when a wrong path or missing permission is more likely."""
PROBES = 8
"""Other files that are tried."""

while_waiting: Callable[[float], None] | None = None
"""Called between two tries with the seconds waited so far; may raise."""
_has_read = False


def patiently(read: Callable[[], Result], others: Callable[[], Iterable[str]]) -> Result:
    """Return `read()`, which is tried again while the storage is away.

    The storage is there if one of some `others`, paths of files beside which the read one is, can be read.

    Raises:
        OSError: it is this file that cannot be read.
        MachineError: the storage stays away.
    """
    global _has_read
    waited, wait, there = 0.0, FIRST_WAIT, False
    while True:
        try:
            result = read()
            _has_read = True
            return result
        except OSError as error:
            if there or error.errno is None:
                raise
            failed = error
        of_the_process, passing = failed.errno in OF_THE_PROCESS, failed.errno in PASSING
        if not of_the_process and (not passing or waited >= SURE_SECONDS):
            paths = list(others())
            there = not paths or any(map(_is_readable, paths))
        if there:
            continue  # once more, because it may have come back between the two
        if waited >= (SURE_SECONDS if of_the_process else GIVE_UP_SECONDS if _has_read else GIVE_UP_AT_START):
            what = "" if of_the_process else ", nor can others there"
            raise MachineError(
                f"{in_words(failed)}. It could not be read for {waited:.0f} s{what}. When the images of "
                "data.root can be read again, the same command resumes."
            ) from failed
        if not waited and multiprocessing.parent_process() is None:
            log.warning("%s. Trying again for up to %d minutes.", in_words(failed), GIVE_UP_SECONDS // 60)
        if while_waiting is not None:
            while_waiting(waited)
        time.sleep(wait)
        waited, wait = waited + wait, min(2 * wait, LONGEST_WAIT)


def spread(count: int) -> range:
    """Return at most `PROBES` of `count` indices."""
    return range(0, count, -(-count // PROBES) or 1)


def _is_readable(path: str) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        try:
            if hasattr(os, "posix_fadvise"):  # what is in memory says nothing about the disk
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.read(file, 1)
        finally:
            os.close(file)
    except OSError:
        return False
    return True
