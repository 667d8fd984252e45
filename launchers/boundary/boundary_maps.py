"""The map of a boundary, as a page draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from launchers.boundary.boundary_axis import Axis
from launchers.boundary.classifier import Classifier

CELLS = 40
"""Cells of a map along each axis."""
MOST_MAPS = 4


def maps_of(known: Classifier, axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Return a map over the first two axes, for each of some values of the third if there is one.

    Each has `at`, the value of the third axis, and rows, from the low end of the second axis, of
    `probability`, that a run trains, and `side`, that most seeds train, at the centers of its cells.
    """
    centers = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS
    flat = torch.cartesian_prod(centers, centers).flip(1)  # the first axis is the faster one
    maps = []
    for at in third_values(axes[2]) if len(axes) > 2 else [None]:
        points = flat
        if at is not None:
            points = torch.cat([flat, torch.full((len(flat), 1), axes[2].position(at), dtype=flat.dtype)], 1)
        latent = known.at(points)
        maps.append({"at": at, "probability": _rows(latent.probability), "side": _rows(latent.side)})
    return maps


def third_values(axis: Axis) -> list[float]:
    """Return values of the third axis, evenly spread between its ends."""
    return [axis.value(index / (MOST_MAPS - 1)) for index in range(MOST_MAPS)]


def _rows(values: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in values.reshape(CELLS, CELLS).tolist()]
