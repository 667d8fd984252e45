"""Per-step schedules: one float64 value for every step of a run."""

from __future__ import annotations

import numpy as np


def cosine_schedule(
    base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> np.ndarray:
    """Linear warm-up from `start` to `base`, then half a cosine from `base` towards `final`.

    The warm-up includes both its ends, so the cosine's first value repeats `base`; the cosine's last value
    stops one step short of `final`. Both are the released code's (`cosine_scheduler` in its `utils.py`).

    Returns (total_steps,). Raises `ValueError` if the warm-up is longer than the whole.
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps = {warmup_steps}: must be between 0 and total_steps = {total_steps}")
    warmup = np.linspace(start, base, warmup_steps)
    progress = np.arange(total_steps - warmup_steps) / max(1, total_steps - warmup_steps)
    return np.concatenate([warmup, final + 0.5 * (base - final) * (1 + np.cos(np.pi * progress))])


def linear_schedule(base: float, final: float, total_steps: int) -> np.ndarray:
    """A straight line from `base` towards `final`, one step short of it like the cosine; (total_steps,)."""
    return base + (final - base) * np.arange(total_steps) / max(1, total_steps)


def constant_schedule(value: float, total_steps: int) -> np.ndarray:
    """The same value at every step; (total_steps,)."""
    return np.full(total_steps, float(value))
