"""A representative part of a data set."""

from __future__ import annotations

import numpy as np

GOLDEN = 0.6180339887498949


def evenly_spread(length: int, size: int | None) -> list[int]:
    """Return `size` of `length` indices (None or more than `length`: all), evenly spread, always the same.

    One index from each of `size` equal stretches. Its position within the stretch follows the golden ratio:
    a constant step would pick a single class where the classes take turns (0, 1, …, 9, 0, 1, …).
    """
    if size is None or size >= length:
        return list(range(length))
    stretch = np.arange(size, dtype=np.int64)
    start, end = stretch * length // size, (stretch + 1) * length // size
    return (start + (stretch * GOLDEN % 1.0 * (end - start)).astype(np.int64)).tolist()
