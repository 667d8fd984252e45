"""Schedules against the released code's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dino_exp.dino.schedule import constant_schedule, cosine_schedule, linear_schedule

ORACLE = json.loads((Path(__file__).parents[1] / "oracle" / "schedules.json").read_text())


@pytest.mark.parametrize("case", ORACLE, ids=lambda case: f"{case['base']}-warmup{case['warmup_epochs']}")
def test_cosine_is_the_released_one(case: dict) -> None:
    values = cosine_schedule(
        case["base"],
        case["final"],
        case["epochs"] * case["steps_per_epoch"],
        warmup_steps=case["warmup_epochs"] * case["steps_per_epoch"],
        start=case["start"],
    )
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, case["values"], rtol=0, atol=1e-15)


def test_the_warm_up_includes_the_peak_and_the_cosine_ends_one_step_before_its_final_value() -> None:
    values = cosine_schedule(2e-3, 1e-6, 100, warmup_steps=10)
    assert values[0] == 0
    assert values[9] == values[10] == 2e-3
    assert values[-1] == pytest.approx(1e-6 + (2e-3 - 1e-6) * 0.5 * (1 + np.cos(np.pi * 89 / 90)), abs=1e-18)


def test_linear_and_constant() -> None:
    np.testing.assert_allclose(linear_schedule(0.9, 1.0, 4), [0.9, 0.925, 0.95, 0.975], rtol=0, atol=1e-15)
    assert constant_schedule(0.996, 3).tolist() == [0.996, 0.996, 0.996]


def test_a_warm_up_may_fill_the_run_but_not_exceed_it() -> None:
    assert cosine_schedule(1.0, 0.0, 3, warmup_steps=3).tolist() == [0, 0.5, 1]
    with pytest.raises(ValueError, match="warmup_steps = 4"):
        cosine_schedule(1.0, 0.0, 3, warmup_steps=4)
