"""What to say where all runs have one outcome: which interval to widen, and in which direction."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from launchers.boundary.boundary_axis import Axis
from launchers.boundary.boundary_file import Tried

LEAST = 1e-7
"""Mutual information below which it is noise."""
SHARE = 0.3
"""Slope, relative to the steepest, from which an axis is named as well."""


def widening(axes: Sequence[Axis], runs: Sequence[Tried]) -> str:
    """Return that all runs have one outcome, and in which direction the other one is likely.

    Collapse is where the mutual information falls to zero, so its slope over the runs points there.
    """
    trains = bool(runs[0].trains)
    outcome = "train" if trains else "collapse"
    what = f"all {len(runs)} runs {outcome}, so there is no boundary in these intervals"
    slopes = _slopes(axes, runs)
    wanted = []
    for axis, slope in sorted(zip(axes, slopes, strict=True), key=lambda pair: -abs(pair[1])):
        up = (slope < 0) == trains  # to where the information falls, if all train
        if abs(slope) < SHARE * max(map(abs, slopes)) or not slope or not _goes_on(axis, up):
            continue
        side, end = ("above", axis.high) if up else ("below", axis.low)
        wanted.append(f"{axis.key} {side} {axis.text(end)}")
    if wanted:
        change = "falls" if trains else "rises"
        return f"{what}; widen {' or '.join(wanted)}, to where the mutual information {change}"
    ends = [
        f"{axis.key} {side} {axis.text(end)}"
        for axis in axes
        for side, end, up in (("below", axis.low, False), ("above", axis.high, True))
        if _goes_on(axis, up)
    ]
    return f"{what}; widen {' or '.join(ends)}"


def _goes_on(axis: Axis, up: bool) -> bool:
    """Return whether an interval can be wider at an end: not below 0, and no momentum from 1 on."""
    return axis.high < 0.9999 or axis.scale != "momentum" if up else axis.low > 0


def _slopes(axes: Sequence[Axis], runs: Sequence[Tried]) -> list[float]:
    """Return the slopes of the logarithm of the mutual information; zeros if too few runs have it."""
    seen = [run for run in runs if run.information is not None and math.isfinite(run.information)]
    if len(seen) <= len(axes) + 1:
        return [0.0] * len(axes)
    rows = [[1.0, *(axis.position(run.values[axis.key]) for axis in axes)] for run in seen]
    logs = [[math.log(max(run.information or 0.0, LEAST))] for run in seen]
    solution = torch.linalg.lstsq(torch.tensor(rows).double(), torch.tensor(logs).double()).solution
    return [float(slope) for slope in solution[1:, 0]]
