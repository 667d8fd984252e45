"""Why the bytes of a file do not become an image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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


class DeepError(UnsuitableError):
    """An image of more than 8 bits per value without a range.

    bits: per value, as stored.
    low, high: the smallest and largest finite value of the channels that are used.
    kind: u, i or f, as in NumPy.
    """

    def __init__(self, bits: int, kind: str, low: float, high: float) -> None:
        self.bits, self.kind, self.low, self.high = bits, kind, low, high
        super().__init__(f"has {self.depth()} ({self.span()}) and data.range is null; set {self.setting()}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.bits, self.kind, self.low, self.high)

    def depth(self) -> str:
        """Return what the values are, in words."""
        return {"u": f"{self.bits} bits per value", "i": f"{self.bits} bits and a sign per value"}.get(
            self.kind, "values in floating point"
        )

    def span(self) -> str:
        """Return the smallest and the largest value, in words."""
        form = ",.4g" if self.kind == "f" else ",.0f"
        return f"{self.low:{form}} to {self.high:{form}}"

    def setting(self) -> str:
        """Return a setting that keeps all of these values."""
        if self.kind == "u":
            bits = max(8, int(self.high).bit_length())
            return f"data.range=[0,{2**bits - 1}] ({bits} bits)"
        if 0 <= self.low <= self.high <= 1:
            return "data.range=[0,1]"
        return f"data.range=[{_rounded(self.low, math.floor)},{_rounded(self.high, math.ceil)}]"


def check_size(height: int, width: int, bytes_per_pixel: int = 1) -> None:
    """Raise UndecodableError if an image would take too much memory."""
    if height * width > MAX_PIXELS:
        raise UndecodableError(TOO_LARGE)
    if height * width * bytes_per_pixel > MAX_BYTES:
        raise UndecodableError(f"more than {MAX_BYTES:,} bytes of pixels; cut it into tiles first")


def first_line(error: Exception) -> str:
    """Return what a library says of a file, in one line."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _rounded(value: float, to: Callable[[float], int]) -> str:
    """Return a number with two digits, rounded down or up."""
    if value == 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    return f"{to(value / step) * step:.4g}"
