"""The boundary in words, and that nothing is said of what the runs have not shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor

from launchers.boundary.boundary_axis import Axis
from launchers.boundary.boundary_lines import boundary_lines
from launchers.boundary.classifier import Classifier, Latent

AXES = [Axis("loss.teacher_temp", 0.0, 1.0, "linear"), Axis("ema.momentum", 0.9, 0.99, "momentum")]
CERTAIN = 1e-12
"""A variance so small that a point is where its mean is."""


class Known:
    """A classifier whose probability that most seeds train is a curve along the first axis."""

    def __init__(self, side: Callable[[Tensor], Tensor]) -> None:
        self.side = side

    def at(self, points: Tensor) -> Latent:
        mean = CERTAIN**0.5 * torch.special.ndtri(self.side(points[:, 0]))
        return Latent(mean[None], torch.full_like(mean, CERTAIN)[None], torch.ones(1, dtype=mean.dtype))


@pytest.mark.parametrize(
    ("side", "words"),
    [
        (lambda x: 0.96 + 0 * x, "training at every loss.teacher_temp from 0 to 1 "),
        (lambda x: 0.04 + 0 * x, "collapse at every loss.teacher_temp from 0 to 1 "),
        (lambda x: 0.06 + 0 * x, "undecided at every loss.teacher_temp from 0 to 1 "),
        (lambda x: 0.94 - 0.88 * x, "undecided at every loss.teacher_temp from 0 to 1 "),
        (lambda x: 0.55 - 0.54 * x, "collapse, but undecided below loss.teacher_temp = 0.926 "),
        (
            lambda x: 0.99 - 1.2 * (x - 0.5).square(),
            "training, but undecided below loss.teacher_temp = 0.316 and above loss.teacher_temp = 0.684 ",
        ),
        (lambda x: 0.99 - 0.98 * x, "training below loss.teacher_temp = 0.499 (0.04–0.96)"),
        (lambda x: 0.99 - 0.7 * x, "training below loss.teacher_temp = 0.699 (0.055–≥ 1)"),
    ],
)
def test_a_side_is_named_where_it_is_sure(side: Callable[[Tensor], Tensor], words: str) -> None:
    for line in boundary_lines(cast(Classifier, Known(side)), AXES):
        assert line.partition(", ")[2].startswith(words)


def test_two_runs_decide_nothing_and_many_do() -> None:
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    few = boundary_lines(Classifier(corners, torch.tensor([True, False])), AXES)
    assert all("undecided at every" in line for line in few)
    even = torch.linspace(0, 1, 6, dtype=torch.float64)
    grid = torch.cartesian_prod(even, even)
    many = boundary_lines(Classifier(grid, grid[:, 1] < 0.3), AXES)
    assert "training at every" in many[0]
    assert "collapse at every" in many[-1]
