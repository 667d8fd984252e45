"""The teacher as exponential moving average of the student: θ_t ← λ·θ_t + (1 − λ)·θ_s (section 3.1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dino_exp.dino.schedule import constant_schedule, cosine_schedule, linear_schedule


def momentum_schedule(
    *, schedule: str, momentum: float, final_momentum: float, total_steps: int
) -> np.ndarray:
    """Return λ of every step, (total_steps,); in the paper a cosine from 0.996 to 1.

    `schedule` is cosine, linear or constant. The first two stop one step short of `final_momentum`.
    """
    if schedule == "constant":
        return constant_schedule(momentum, total_steps)
    if schedule == "linear":
        return linear_schedule(momentum, final_momentum, total_steps)
    return cosine_schedule(momentum, final_momentum, total_steps)


@torch.no_grad()
def update_teacher(teacher: tuple[Tensor, ...], student: tuple[Tensor, ...], momentum: float) -> None:
    """Move the teacher's parameters towards the student's, in place and in the parameters' own precision.

    Call it after the optimizer's step, with `momentum` λ of that step. Buffers are not averaged: the
    teacher's batch norms gather their own statistics. Both must be the same parameters in the same order.
    Raises `ValueError` if their numbers differ.
    """
    if len(teacher) != len(student):
        raise ValueError(f"the teacher has {len(teacher)} parameters and the student {len(student)}")
    torch._foreach_lerp_(teacher, student, 1 - momentum)
