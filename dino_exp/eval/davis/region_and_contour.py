"""Region similarity J and contour accuracy F of masks (Perazzi et al. 2016), as DAVIS 2017 computes them.

The measures of the challenge's own code, davis2017-evaluation, which cannot be installed as a package.
Contours are compared by nearest points, which is equivalent to its dilation with a disk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_exp.errors import UserError

Mask = NDArray[np.bool_]

TOLERANCE = 0.008
"""Greatest distance between contours that agree, as a share of the image's diagonal."""


class Statistics(NamedTuple):
    """Statistics of one object's values over the frames, each value in 0–1."""

    mean: float
    recall: float
    """Share of the frames with a value above 0.5."""
    decay: float
    """Mean of the first quarter of the frames minus mean of the last quarter."""


def statistics(values: Sequence[float]) -> Statistics:
    """Summarize at least one value; neighboring quarters share a frame, as in the challenge's code."""
    each = np.asarray(values, dtype=np.float64)
    ends = np.round(np.linspace(1, len(each), 5) + 1e-10).astype(int) - 1
    first, last = each[: ends[1] + 1], each[ends[3] :]
    return Statistics(
        float(each.mean()), float((each > 0.5).mean()), float(first.mean()) - float(last.mean())
    )


def region_similarity(found: Mask, true: Mask) -> float:
    """Return J, the intersection over union of two masks (H, W); 1 if both are empty."""
    union = int((found | true).sum())
    return int((found & true).sum()) / union if union else 1.0


def contour_accuracy(found: Mask, true: Mask) -> float:
    """Return F of two masks (H, W): the harmonic mean of the shares of each contour that are near the other.

    Near means at most 0.8 % of the diagonal, rounded up to pixels. F is 1 if neither mask has a contour, and
    0 if only one has.
    """
    radius = math.ceil(TOLERANCE * math.hypot(*true.shape))
    found_contour, true_contour = np.argwhere(contour(found)), np.argwhere(contour(true))
    if len(found_contour) == 0 or len(true_contour) == 0:
        return float(len(found_contour) == len(true_contour))
    precision = _share_near(found_contour, true_contour, radius)
    recall = _share_near(true_contour, found_contour, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Mask) -> Mask:
    """Return the pixels (H, W) that differ from the next one to the right, below, or both."""
    beyond = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != beyond[:-1, 1:]) | (mask != beyond[1:, :-1]) | (mask != beyond[1:, 1:])


def check_scipy() -> None:
    """Raise UserError if scipy, which finds the nearest points, is not installed."""
    if find_spec("scipy") is None:
        raise UserError("scipy is missing; pip install 'dino-exp[eval]'.")


def _share_near(points: NDArray[np.int64], others: NDArray[np.int64], radius: int) -> float:
    from scipy.spatial import KDTree

    # KDTree excludes the bound itself; distances between pixels are roots of integers.
    distances, _ = KDTree(others).query(points, distance_upper_bound=radius + 0.5)
    return float((distances <= radius).mean())
