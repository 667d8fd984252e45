"""Region similarity J and contour accuracy F of masks (Perazzi et al. 2016), as DAVIS 2017 computes them.

The challenge's own code, davis2017-evaluation, is in no package registry, so its few measures are written
anew. Contours are compared by nearest points, which is what its dilation with a disk comes to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dino_exp.errors import UserError

Mask = NDArray[np.bool_]

TOLERANCE = 0.008
"""How far apart contours may be, as a share of the image's diagonal."""


class Statistics(NamedTuple):
    """Of one object's values over the frames."""

    mean: float
    recall: float
    """Share of the frames above 0.5."""
    decay: float
    """Mean of the first quarter minus mean of the last."""


def statistics(values: Sequence[float]) -> Statistics:
    """Of at least one value; neighboring quarters share a frame, as in the challenge's code."""
    each = np.asarray(values, dtype=np.float64)
    ends = np.round(np.linspace(1, len(each), 5) + 1e-10).astype(int) - 1
    first, last = each[: ends[1] + 1], each[ends[3] :]
    return Statistics(
        float(each.mean()), float((each > 0.5).mean()), float(first.mean()) - float(last.mean())
    )


def region_similarity(found: Mask, true: Mask) -> float:
    """J: pixels in both masks (H, W) by pixels in any of them; 1 where both are empty."""
    union = int((found | true).sum())
    return int((found & true).sum()) / union if union else 1.0


def contour_accuracy(found: Mask, true: Mask) -> float:
    """F: harmonic mean of the shares of either contour that lie near the other, of masks (H, W).

    Near is up to 0.8 % of the diagonal, rounded up to pixels. Two masks without contour agree, and one
    without contour does not agree with one that has some.
    """
    radius = math.ceil(TOLERANCE * math.hypot(*true.shape))
    found_contour, true_contour = np.argwhere(contour(found)), np.argwhere(contour(true))
    if len(found_contour) == 0 or len(true_contour) == 0:
        return float(len(found_contour) == len(true_contour))
    precision = _share_near(found_contour, true_contour, radius)
    recall = _share_near(true_contour, found_contour, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Mask) -> Mask:
    """Pixels (H, W) unlike the one to the right, below, or both; the image's edge is no contour."""
    beyond = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != beyond[:-1, 1:]) | (mask != beyond[1:, :-1]) | (mask != beyond[1:, 1:])


def check_scipy() -> None:
    """Raise UserError where scipy, which finds the nearest points, is not installed."""
    try:
        import scipy.spatial  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise UserError("scipy is missing; install it with: pip install 'dino-exp[eval]'.") from error


def _share_near(points: NDArray[np.int64], others: NDArray[np.int64], radius: int) -> float:
    from scipy.spatial import KDTree

    # The bound itself is excluded by KDTree, and distances between pixels are roots of whole numbers.
    distances, _ = KDTree(others).query(points, distance_upper_bound=radius + 0.5)
    return float((distances <= radius).mean())
