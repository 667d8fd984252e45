"""The boundary in words: for which values of the first axis training works, by those of the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

from launchers.boundary.boundary_axis import Axis
from launchers.boundary.classifier import Classifier

ALONG = 401
"""Points along the first axis."""
SURE = 0.95
"""Probability beyond which a point is surely on one side: the uncertainty of a line is its central 90 %."""
DOUBTFUL = 0.7
"""Probability of its side below which an entire stretch is not told from its surroundings."""
MOST_LINES = 4
"""Values of each of two other axes, so that there are at most 16 lines."""


def boundary_lines(known: Classifier, axes: Sequence[Axis]) -> list[str]:
    """Return a line for each value of the others: at m = 0.9, training below τ_t = 0.052 (0.047–0.058)."""
    first, *others = axes
    along = torch.linspace(0, 1, ALONG, dtype=torch.float64)
    lines = []
    for values in product(*(_ticks(axis, len(others)) for axis in others)):
        at = [axis.position(value) for axis, value in zip(others, values, strict=True)]
        points = torch.stack([along, *(torch.full_like(along, position) for position in at)], 1)
        latent = known.at(points)
        where = ", ".join(
            f"{axis.key} = {axis.text(value)}" for axis, value in zip(others, values, strict=True)
        )
        lines.append(f"at {where}, {_words(first, latent.side, latent.probability)}")
    return lines


def _ticks(axis: Axis, others: int) -> list[float]:
    ticks = sorted({axis.low, *axis.ticks(), axis.high})
    if others == 1 or len(ticks) <= MOST_LINES:
        return ticks
    return [ticks[round(index * (len(ticks) - 1) / (MOST_LINES - 1))] for index in range(MOST_LINES)]


def _words(axis: Axis, side: Tensor, probability: Tensor) -> str:
    trains = _sides(side)
    changes = [index for index in range(1, len(trains)) if trains[index] != trains[index - 1]]
    if not changes:
        every = f"at every {axis.key} from {axis.text(axis.low)} to {axis.text(axis.high)}"
        if trains[0]:
            return f"training {every} (probability at least {float(probability.min()):.2f})"
        return f"collapse {every} (probability of training at most {float(probability.max()):.2f})"
    ends = [_end(axis, side, index) for index in changes]
    parts = []
    if trains[0]:
        parts.append(f"below {axis.key} = {ends.pop(0)}")
    while len(ends) > 1:
        parts.append(f"between {axis.key} = {ends.pop(0)} and {ends.pop(0)}")
    if ends:
        parts.append(f"above {axis.key} = {ends.pop(0)}")
    return f"training {' and '.join(parts)}"


def _sides(side: Tensor) -> list[bool]:
    """Return on which side each point is, without stretches that may as well be on the other."""
    trains = (side > 0.5).tolist()
    ends = [0, *(index for index in range(1, len(trains)) if trains[index] != trains[index - 1]), len(trains)]
    for start, end in pairwise(ends):
        doubtful = float((side[start:end] - 0.5).abs().max()) < DOUBTFUL - 0.5
        if doubtful and end - start < len(trains):
            trains[start:end] = [not trains[start]] * (end - start)
    return trains


def _end(axis: Axis, side: Tensor, change: int) -> str:
    """Return a change of sides with its uncertainty: 0.052 (0.047–0.058)."""
    sure = [abs(2 * value - 1) >= 2 * SURE - 1 for value in side.tolist()]
    low = next((index for index in range(change - 1, -1, -1) if sure[index]), None)
    high = next((index for index in range(change, len(sure)) if sure[index]), None)
    texts = [
        axis.text(end) if index is None else axis.text(axis.value(index / (len(sure) - 1)))
        for index, end in ((low, axis.low), (high, axis.high))
    ]
    known = f"{'≤ ' if low is None else ''}{texts[0]}–{'≥ ' if high is None else ''}{texts[1]}"
    return f"{axis.text(axis.value((change - 0.5) / (len(sure) - 1)))} ({known})"
