"""Noting images of 16 bits per value while they are decoded, because only their upper 8 bits are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

_largest: ContextVar[list[int] | None] = ContextVar("_largest", default=None)


@contextmanager
def noting() -> Iterator[list[int]]:
    """Collect the largest value, after the lower bits were dropped, of each such image decoded meanwhile."""
    found: list[int] = []
    token = _largest.set(found)
    try:
        yield found
    finally:
        _largest.reset(token)


def note(values: np.ndarray) -> np.ndarray:
    """Note and return the values uint8 of an image that had 16 bits."""
    found = _largest.get()
    if found is not None:
        found.append(int(values.max()))
    return values
