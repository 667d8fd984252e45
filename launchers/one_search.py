"""A folder in which only one search is at work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dino_exp.errors import UserError, refusing

LOCK = ".search.lock"
WAIT_SECONDS = 5
"""Time in which the data loader's processes of a killed run release the lock."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock the folder against other searches, to which this one's trials would seem dead."""
    lock = FileLock(folder / LOCK)
    with refusing("choose another output_root"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            raise UserError(
                f"{folder}: another process is searching here; wait for it, or stop it."
            ) from None
    try:
        yield
    finally:
        lock.release()
