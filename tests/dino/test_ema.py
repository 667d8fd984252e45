"""The teacher's moving average."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dino_exp.dino.ema import momentum_schedule, update_teacher
from dino_exp.dino.head import DINOHead


def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    update_teacher(tuple(teacher.parameters()), tuple(student.parameters()), momentum)


def test_parameters_move_and_buffers_do_not() -> None:
    teacher, student = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    statistics, seen = student.get_buffer("running_mean"), student.get_buffer("num_batches_tracked")
    with torch.no_grad():
        teacher.weight.fill_(1)
        student.weight.fill_(3)
    statistics.fill_(5)
    seen.fill_(7)
    update(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight.detach(), torch.full((2,), 1.2))
    assert teacher.get_buffer("running_mean").tolist() == [0, 0]
    assert teacher.get_buffer("num_batches_tracked") == 0
    assert student.weight.tolist() == [3, 3]


def test_the_last_layers_gain_moves_too() -> None:
    def head() -> DINOHead:
        return DINOHead(in_dim=3, out_dim=5, hidden_dim=4, bottleneck_dim=2, norm_last_layer=False).double()

    teacher, student = head().requires_grad_(False), head()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.no_grad():
        student.last_layer.weight_g.fill_(2)
    update(teacher, student, 0.996)
    assert teacher.last_layer.weight_g.flatten().tolist() == pytest.approx(5 * [1.004], abs=1e-15)
    for name, value in student.named_parameters():
        expected = 0.996 * before[name] + 0.004 * value.detach()
        torch.testing.assert_close(teacher.get_parameter(name), expected, rtol=0, atol=1e-15)


def test_momentum_one_keeps_the_teacher_and_momentum_zero_copies_the_student() -> None:
    teacher, student = nn.Linear(3, 3), nn.Linear(3, 3)
    kept = teacher.weight.detach().clone()
    update(teacher, student, 1.0)
    assert torch.equal(teacher.weight, kept)
    update(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)


def test_different_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="the teacher has 2 parameters and the student 1"):
        update(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), 0.9)


def test_the_cosine_is_the_released_one_and_ends_below_final_momentum() -> None:
    cases = json.loads((Path(__file__).parents[1] / "oracle" / "schedules.json").read_text())
    case = next(case for case in cases if case["base"] == 0.996)
    values = momentum_schedule(schedule="cosine", momentum=0.996, final_momentum=1.0, total_steps=70)
    np.testing.assert_allclose(values, case["values"], rtol=0, atol=1e-15)
    assert values[0] == 0.996
    assert values[-1] == pytest.approx(0.9999979861330827, abs=1e-15)


def test_constant_and_linear_momentum() -> None:
    constant = momentum_schedule(schedule="constant", momentum=0.99, final_momentum=1.0, total_steps=3)
    linear = momentum_schedule(schedule="linear", momentum=0.9, final_momentum=1.0, total_steps=4)
    assert constant.tolist() == [0.99, 0.99, 0.99]
    np.testing.assert_allclose(linear, [0.9, 0.925, 0.95, 0.975], rtol=0, atol=1e-15)
