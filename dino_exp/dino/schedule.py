"""Schedules of learning rate, weight decay and EMA momentum: one float64 value per step of a run."""

from __future__ import annotations

import numpy as np


def cosine_schedule(
    base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> np.ndarray:
    """Return a linear warm-up from `start` to `base`, then half a cosine towards `final`; (total_steps,).

    As in the released code (`cosine_scheduler` in its `utils.py`), the warm-up includes both its ends, so the
    cosine's first value repeats `base`, and the cosine's last value is one step short of `final`.
    Raises `ValueError` if the warm-up is longer than the run.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps = {warmup_steps}: must be between 0 and total_steps = {total_steps}")
    warmup = np.linspace(start, base, warmup_steps)
    progress = np.arange(total_steps - warmup_steps) / max(1, total_steps - warmup_steps)
    return np.concatenate([warmup, final + 0.5 * (base - final) * (1 + np.cos(np.pi * progress))])


def linear_schedule(base: float, final: float, total_steps: int) -> np.ndarray:
    """Return a straight line from `base` to one step short of `final`, as the cosine; (total_steps,)."""
    return base + (final - base) * np.arange(total_steps) / max(1, total_steps)


def constant_schedule(value: float, total_steps: int) -> np.ndarray:
    """Return the same value for every step; (total_steps,)."""
    return np.full(total_steps, float(value))
