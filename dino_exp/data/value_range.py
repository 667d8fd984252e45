"""`data.range`: which values of an image become 0 and which 255, and the conversion to bytes by them."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

import numpy as np

Bound = float | str
Pair = tuple[Bound, Bound]

EXAMPLES = "[0,4095], [p0.5,p99.5] or [mean-2sd,mean+2sd]"
WORD = re.compile(r"p(?P<percentile>\d+\.?\d*|\.\d+)|mean(?:(?P<sign>[+-])(?P<factor>\d+\.?\d*|\.\d+)sd)?")
"""A percentile, p0.5, or a distance from the mean in standard deviations, mean-2sd, in one channel."""


def pairs_of(setting: Any) -> tuple[Pair, ...]:
    """Return the pairs of `data.range`: one for all channels, or one for each.

    A bound is a number in the units of the file; or a word for a number that is measured in each channel of
    each image: `p0.5` is a percentile, `mean-2sd` lies two standard deviations below the mean.

    Raises ValueError that says what is wrong and what would be right.
    """
    items = list(setting) if _is_list(setting) else []
    nested = [item for item in items if _is_list(item)]
    pairs = nested if nested else [items]
    if len(nested) not in (0, len(items)) or not all(len(pair) == 2 for pair in pairs):
        raise ValueError(f"give a pair, {EXAMPLES}, or one per channel, [[0,4095],[0,10000]].")
    found = tuple((_bound(low), _bound(high)) for low, high in pairs)
    for number, (low, high) in enumerate(found, start=1):
        kind, other = (_order(bound) for bound in (low, high))
        if kind[0] == other[0] and kind[1] >= other[1]:
            which = f" of pair {number}" if len(found) > 1 else ""
            right = f"; write [{show(high)},{show(low)}]" if kind[1] > other[1] else ""
            raise ValueError(f"the first bound{which} must be less than the second{right}.")
        if kind[0] == other[0] == "" and not math.isfinite(other[1] - kind[1]):
            raise ValueError("the bounds are too far apart for floating point.")
    return found


def show(bound: Bound) -> str:
    """Return a bound as it can be typed."""
    return bound if isinstance(bound, str) else f"{bound:.10g}"


def is_measured(pairs: tuple[Pair, ...]) -> bool:
    """Return whether a bound depends on the image."""
    return any(isinstance(bound, str) for pair in pairs for bound in pair)


def fits_bytes(pairs: tuple[Pair, ...]) -> bool:
    """Return whether all numbers among the bounds are values that an image of 8 bits can have."""
    return all(isinstance(bound, str) or 0 <= bound <= 255 for pair in pairs for bound in pair)


def to_bytes(values: np.ndarray, pairs: tuple[Pair, ...]) -> np.ndarray:
    """Return values (H, W, C) as uint8 by round(255 · (value - low) / (high - low)), clipped.

    Computed in double precision and rounded half to even. Where a measured high is no more than its low, as
    in a channel that is constant in this image, values up to `low` become 0 and larger ones 255, which is
    what the formula tends to; a constant channel becomes 0.

    Args:
        pairs: one for all channels, or C of them; one channel with several pairs becomes as many channels.
    """
    height, width, channels = values.shape
    each = pairs * channels if len(pairs) == 1 else pairs
    found = np.empty((height, width, len(each)), dtype=np.uint8)
    for channel, (low, high) in enumerate(each):
        plane = values[:, :, min(channel, channels - 1)]
        found[:, :, channel] = _to_bytes(plane, _level(low, plane), _level(high, plane))
    return found


def _to_bytes(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    if plane.dtype in (np.uint8, np.uint16):  # looked up, which is five times as fast as computed
        return np.take(_table(plane.dtype.itemsize, low, high), plane)
    return _scaled(plane, low, high)


@lru_cache(maxsize=16)
def _table(itemsize: int, low: float, high: float) -> np.ndarray:
    """Return the byte of every value."""
    return _scaled(np.arange(256**itemsize), low, high)


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if high <= low:
        return np.where(values > low, 255, 0).astype(np.uint8)
    with np.errstate(over="ignore"):  # what overflows is beyond the range
        scaled = values.astype(np.float64)
        scaled -= low
        scaled *= 255
        scaled /= high - low
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)


def _level(bound: Bound, plane: np.ndarray) -> float:
    """Return a bound as a number in the units of a channel (H, W)."""
    word = WORD.fullmatch(bound) if isinstance(bound, str) else None
    if word is None:
        return float(bound)
    if word["percentile"]:
        return _percentile(plane, float(word["percentile"]) / 100)
    mean = float(plane.mean(dtype=np.float64))
    factor = float(f"{word['sign']}{word['factor']}") if word["factor"] else 0.0
    return mean + factor * float(plane.std(dtype=np.float64)) if factor else mean


def _percentile(plane: np.ndarray, share: float) -> float:
    """Return the value that is larger than a share of all, between two values in proportion."""
    if plane.dtype not in (np.uint8, np.uint16):
        return float(np.quantile(plane, share))
    ends = np.cumsum(np.bincount(plane.ravel()))  # counted, which is ten times as fast as sorted
    rank = share * (plane.size - 1)
    below, above = np.searchsorted(ends, [math.floor(rank), math.ceil(rank)], side="right")
    return float(below + (above - below) * (rank % 1))


def _is_list(value: Any) -> bool:
    return hasattr(value, "__len__") and not isinstance(value, (str, bytes, dict))


def _bound(value: Any) -> Bound:
    if isinstance(value, str):
        word = WORD.fullmatch(value.replace(" ", ""))
        if word and float(word["percentile"] or 0) <= 100:
            return value.replace(" ", "")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise ValueError(
        f"{value} is no bound: give a number, a percentile (p0 to p100), or a distance from the mean in "
        "standard deviations (mean-2sd)."
    )


def _order(bound: Bound) -> tuple[str, float]:
    """Return what bounds of this kind are measured in, and the number by which they are ordered."""
    word = WORD.fullmatch(bound) if isinstance(bound, str) else None
    if word is None:
        return "", float(bound)
    if word["percentile"]:
        return "p", float(word["percentile"])
    return "mean", float(f"{word['sign']}{word['factor']}") if word["factor"] else 0.0
