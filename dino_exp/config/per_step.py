"""What a run's batch makes of the values of its recipe that count per step, and of the learning rate.

A recipe that was written for batches of R images (`trainer.reference_batch`) makes κ = batch_size / R of its
steps in one step of another batch. So that teacher and center forget within as many images as before, their
momenta become λ^κ and m^κ (Busbridge et al. 2023, "How to scale your EMA"). Schedules, warm-ups and freezes
are in epochs. The configuration keeps what was written.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any

BATCH_OF_LR = 256
"""The batch that `optimizer.lr` is for."""


@dataclass(frozen=True)
class PerStep:
    """Values per step as a run uses them."""

    momentum: float
    """λ at the first step."""
    final_momentum: float
    """λ towards the end."""
    center_momentum: float
    """m."""
    peak_lr: float
    """Learning rate at the end of its warm-up."""

    @classmethod
    def of(cls, cfg: Any, batch_size: int | None = None) -> PerStep:
        """Return the values of a configuration, typed or as plain dictionaries.

        batch_size: instead of `trainer.batch_size`.
        """
        ema, optimizer, batch = cfg["ema"], cfg["optimizer"], batch_size or cfg["trainer"]["batch_size"]
        reference = cfg["trainer"].get("reference_batch")
        factor = batch / reference if reference else 1.0
        return cls(
            ema["momentum"] ** factor,
            ema["final_momentum"] ** factor,
            cfg["loss"]["center_momentum"] ** factor,
            peak_lr(optimizer["lr"], batch, optimizer.get("lr_rule", "linear"), reference),
        )


def peak_lr(lr: float, batch_size: float, rule: str, reference: float | None = None) -> float:
    """Return the peak of the learning rate: in proportion to the batch, to its root, or to neither.

    Root and neither are relative to the reference, for which the recipe was written, or else to 256. The root
    is for Adam (Malladi et al. 2022).
    """
    if rule == "linear":
        return lr * batch_size / BATCH_OF_LR
    reference = reference or BATCH_OF_LR
    return lr * reference / BATCH_OF_LR * (math.sqrt(batch_size / reference) if rule == "sqrt" else 1.0)


def conversion(cfg: Any) -> str:
    """Return what the reference batch has changed, in words; empty without one."""
    reference, batch = cfg["trainer"].get("reference_batch"), cfg["trainer"]["batch_size"]
    if not reference:
        return ""
    names = ("λ", "final λ", "m", "peak of the learning rate")
    pairs = zip(names, astuple(PerStep.of(cfg, reference)), astuple(PerStep.of(cfg)), strict=True)
    changed = [f"{name} {before:.6g} → {after:.6g}" for name, before, after in pairs if before != after]
    return f"{reference:,} → {batch:,}, κ = {batch / reference:g}: {', '.join(changed) or 'nothing changes'}"
