"""The boundary in words: for which values of the first axis training works, by those of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    trains, unsure = _sides(side), [not each for each in _sure(side)]
    every = f"at every {axis.key} from {axis.text(axis.low)} to {axis.text(axis.high)}"
    lowest, highest = f"{float(probability.min()):.2f}", f"{float(probability.max()):.2f}"
    if all(unsure):
        return f"undecided {every} (probability of training {lowest}–{highest})"
    if _changes(trains):
        return f"training {_where(axis, trains, lambda index: _end(axis, side, index))}"
    word, known = ("training", f"at least {lowest}") if trains[0] else ("collapse", f"at most {highest}")
    if any(unsure):
        every = f"but undecided {_where(axis, unsure, lambda index: axis.text(_between(axis, index)))}"
        word += ","
    return f"{word} {every} (probability of training {known})"


def _where(axis: Axis, inside: Sequence[bool], end: Callable[[int], str]) -> str:
    """Return stretches in words: below τ_t = 0.03 and between τ_t = 0.05 and 0.07."""
    ends = [end(index) for index in _changes(inside)]
    parts = []
    if inside[0]:
        parts.append(f"below {axis.key} = {ends.pop(0)}")
    while len(ends) > 1:
        parts.append(f"between {axis.key} = {ends.pop(0)} and {ends.pop(0)}")
    if ends:
        parts.append(f"above {axis.key} = {ends.pop(0)}")
    return " and ".join(parts)


def _changes(values: Sequence[bool]) -> list[int]:
    return [index for index in range(1, len(values)) if values[index] != values[index - 1]]


def _between(axis: Axis, index: int) -> float:
    """Return the value between a point and the one before it."""
    return axis.value((index - 0.5) / (ALONG - 1))


def _sides(side: Tensor) -> list[bool]:
    """Return on which side each point is, without stretches that may as well be on the other."""
    trains = (side > 0.5).tolist()
    for start, end in pairwise([0, *_changes(trains), len(trains)]):
        doubtful = float((side[start:end] - 0.5).abs().max()) < DOUBTFUL - 0.5
        if doubtful and end - start < len(trains):
            trains[start:end] = [not trains[start]] * (end - start)
    return trains


def _sure(side: Tensor) -> list[bool]:
    """Return whether each point is surely on one side."""
    return ((side - 0.5).abs() >= SURE - 0.5).tolist()


def _end(axis: Axis, side: Tensor, change: int) -> str:
    """Return a change of sides with its uncertainty: 0.052 (0.047–0.058)."""
    sure = _sure(side)
    low = next((index for index in range(change - 1, -1, -1) if sure[index]), None)
    high = next((index for index in range(change, len(sure)) if sure[index]), None)
    texts = [
        axis.text(end) if index is None else axis.text(axis.value(index / (ALONG - 1)))
        for index, end in ((low, axis.low), (high, axis.high))
    ]
    known = f"{'≤ ' if low is None else ''}{texts[0]}–{'≥ ' if high is None else ''}{texts[1]}"
    return f"{axis.text(_between(axis, change))} ({known})"
