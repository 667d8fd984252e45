"""Axes: positions of values, values of positions, and round values between."""

from __future__ import annotations

import pytest

from dino_exp.config.search_space import Numbers
from launchers.boundary.boundary_axis import Axis

TEMPERATURE = Axis("loss.teacher_temp", 0.02, 0.1, "linear")
RATE = Axis("optimizer.lr", 1e-5, 1e-2, "log")
MOMENTUM = Axis("loss.center_momentum", 0.0, 0.999, "momentum")


@pytest.mark.parametrize(
    ("axis", "middle", "ticks"),
    [
        (TEMPERATURE, 0.06, [0.02, 0.04, 0.06, 0.08, 0.1]),
        (RATE, 10**-3.5, [1e-5, 1e-4, 1e-3, 1e-2]),
        (MOMENTUM, 1 - 10**-1.5, [0.0, 0.9, 0.99, 0.999]),
        (Axis("ema.momentum", 0.9, 0.99, "momentum"), 1 - 10**-1.5, [0.9, 0.95, 0.98, 0.99]),
    ],
)
def test_an_axis(axis: Axis, middle: float, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)
    assert axis.value(0.5) == pytest.approx(middle)
    assert [axis.position(axis.low), axis.position(axis.high)] == pytest.approx([0, 1])
    for position in (0.1, 0.7):
        assert axis.position(axis.value(position)) == pytest.approx(position)
    assert Axis.from_fields(axis.as_fields()) == axis


def test_values_are_told_apart_where_the_scale_does() -> None:
    assert [MOMENTUM.text(value) for value in (0, 0.9, 0.99, 0.9987)] == ["0", "0.9", "0.99", "0.9987"]
    assert TEMPERATURE.text(0.0523456) == "0.0523"


def test_momenta_have_their_own_scale() -> None:
    assert Axis.of(Numbers("ema.momentum", 0.9, 0.999)).scale == "momentum"
    assert Axis.of(Numbers("loss.teacher_temp", 0.02, 0.1)).scale == "linear"
    assert Axis.of(Numbers("optimizer.lr", 1e-4, 0.1, log=True)).scale == "log"
    assert Axis.of(Numbers("ema.momentum", 0.1, 0.9, log=True)).scale == "log"
