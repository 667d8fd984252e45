"""Why the bytes of a file do not become an image."""

from __future__ import annotations

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is decoded: Pillow refuses larger ones as decompression bombs.

A 20,000 x 20,000 image would take 1.2 GB in each worker, for crops of a few hundred pixels. It counts as
unreadable, so that one such file neither ends a run nor exhausts the memory."""
MAX_BYTES = 4 * MAX_PIXELS
"""Bytes of the largest decoded image, whatever its channels and depth."""
TOO_LARGE = f"more than {MAX_PIXELS:,} pixels; scale it down first"


class UndecodableError(Exception):
    """Bytes that cannot be read as an image, with the reason."""


class UnsuitableError(UndecodableError):
    """An image that is whole, but needs other settings or another library."""


def check_size(height: int, width: int, bytes_per_pixel: int = 1) -> None:
    """Raise UndecodableError if an image would take too much memory."""
    if height * width > MAX_PIXELS:
        raise UndecodableError(TOO_LARGE)
    if height * width * bytes_per_pixel > MAX_BYTES:
        raise UndecodableError(f"more than {MAX_BYTES:,} bytes of pixels; cut it into tiles first")


def first_line(error: Exception) -> str:
    """Return what a library says of a file, in one line."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
