"""What follows from the configuration and the number of images: lengths, schedules, derived numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dino_exp.config.per_step import PerStep, conversion
from dino_exp.config.schema import Config
from dino_exp.config.targets import build
from dino_exp.dino.schedule import cosine_schedule
from dino_exp.dino.verdict import Judge
from dino_exp.errors import UserError


@dataclass(frozen=True)
class Plan:
    """Lengths in steps, and the value of each scheduled quantity at each step."""

    batch_size: int
    steps_per_epoch: int
    total_steps: int
    """Steps that the schedules cover."""
    stop_step: int
    """Steps after which the run is finished; less than `total_steps` with `trainer.max_steps`."""
    warmup_steps: int
    freeze_steps: int
    """Steps at the start in which the last layer is frozen."""
    eval_steps: int
    """Steps between two evaluations."""
    out_dim: int
    lr: np.ndarray
    weight_decay: np.ndarray
    ema_momentum: np.ndarray
    center_momentum: float
    lr_rule: str
    conversion: str
    """What `trainer.reference_batch` has changed, in words."""

    @classmethod
    def of(cls, cfg: Config, images: int, processes: int = 1) -> Plan:
        """Return the plan of a configuration for a training set of `images` images.

        Raises UserError for a batch that is larger, or that cannot be divided among the processes.
        """
        batch_size, parts = cfg.trainer.batch_size, processes * cfg.trainer.accumulate
        if batch_size % parts:
            below = batch_size // parts * parts
            nearest = f"nearest are {below} and {below + parts}" if below else f"the smallest is {parts}"
            raise UserError(
                f"trainer.batch_size = {batch_size}: not a multiple of {processes} processes times "
                f"trainer.accumulate = {cfg.trainer.accumulate}; {nearest}."
            )
        if images < batch_size:
            raise UserError(
                f"trainer.batch_size = {batch_size}: the data set has only {images} images, "
                f"less than one batch; use at most {images}."
            )
        per_epoch = images // batch_size
        total = cfg.trainer.epochs * per_epoch
        optimizer, per_step = cfg.optimizer, PerStep.of(cfg)
        warmup = round(optimizer.warmup_epochs * per_epoch)
        return cls(
            batch_size=batch_size,
            steps_per_epoch=per_epoch,
            total_steps=total,
            stop_step=min(total, cfg.trainer.max_steps or total),
            warmup_steps=warmup,
            freeze_steps=round(optimizer.freeze_last_layer_epochs * per_epoch),
            eval_steps=cfg.eval.every_epochs * per_epoch,
            out_dim=cfg.head.out_dim,
            lr=cosine_schedule(per_step.peak_lr, optimizer.min_lr, total, warmup_steps=warmup),
            weight_decay=cosine_schedule(optimizer.weight_decay, optimizer.final_weight_decay, total),
            ema_momentum=build(
                cfg.ema,
                total_steps=total,
                momentum=per_step.momentum,
                final_momentum=per_step.final_momentum,
            ),
            center_momentum=per_step.center_momentum,
            lr_rule=optimizer.lr_rule,
            conversion=conversion(cfg),
        )

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, both from 0."""
        return step // self.steps_per_epoch

    def facts(self) -> dict[str, str]:
        """Return derived numbers for people, as name and text."""
        momentum = float(self.ema_momentum[0])
        if momentum == 0:
            memory = "none: the teacher is the student"
        elif momentum == 1:
            memory = "the teacher never moves"
        else:
            steps = math.log(0.5) / math.log(momentum)
            memory = f"{steps:,.0f} steps = {steps / self.steps_per_epoch:.2g} epochs at λ = {momentum:g}"
        length = f"{self.steps_per_epoch:,} per epoch, {self.total_steps:,} in all"
        if self.stop_step < self.total_steps:
            length += f", stopping after {self.stop_step:,} (trainer.max_steps)"
        return {
            "steps": length,
            **({"reference batch": self.conversion} if self.conversion else {}),
            "learning rate": f"0 → {self.lr.max():.3g} in {self.warmup_steps:,} steps → {self.lr[-1]:.2g} "
            f"({self._lr_source()})",
            "weight decay": f"{self.weight_decay[0]:.3g} → {self.weight_decay[-1]:.3g}",
            "teacher's half-life": memory,
            "last layer frozen": f"{self.freeze_steps:,} steps",
            "ln K": f"{math.log(self.out_dim):.4f} (the loss of a uniform collapse, K = {self.out_dim:,})",
        }

    def _lr_source(self) -> str:
        """Return how the peak of the learning rate follows from the batch, in words."""
        if self.lr_rule == "linear":
            return f"batch {self.batch_size} / 256"
        return "whatever the batch" if self.lr_rule == "none" else f"by the root of batch {self.batch_size}"


def judge_of(cfg: Config, *, warmup_steps: int, total_steps: int, steps_per_epoch: int = 0) -> Judge:
    """Return the judge of a run, from its configuration and its schedules' steps."""
    return Judge(
        out_dim=cfg.head.out_dim,
        crops=2 * cfg.trainer.batch_size,
        warmup_steps=max(50, warmup_steps),
        total_steps=total_steps,
        center_momentum=PerStep.of(cfg).center_momentum if cfg.loss.centering == "mean" else 0.0,
        last_warmup_step=cfg.loss.warmup_teacher_temp_epochs * steps_per_epoch,
    )
