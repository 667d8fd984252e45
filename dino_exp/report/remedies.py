"""What to try against what the doctor finds, the first thing first."""

from __future__ import annotations

import math

from dino_exp.report.training_log import TrainingLog

RELEASED = {
    "loss.teacher_temp": "--teacher_temp",
    "loss.warmup_teacher_temp_epochs": "--warmup_teacher_temp_epochs",
    "loss.center_momentum": "center_momentum of DINOLoss",
    "optimizer.lr": "--lr",
    "optimizer.warmup_epochs": "--warmup_epochs",
    "optimizer.clip_grad": "--clip_grad",
    "trainer.precision": "--use_fp16 false",
    "head.out_dim": "--out_dim",
}
"""What our keys are called in the released code."""


def against_uniform(log: TrainingLog) -> tuple[str, ...]:
    """The teacher's output is flat."""
    missing = missing_parts(log)
    if missing:
        return missing
    advice = []
    key, warm_up = called(log, "loss.teacher_temp"), called(log, "loss.warmup_teacher_temp_epochs")
    temperature = log.setting("loss.teacher_temp")
    if temperature is None:
        advice.append(
            f"a sharper teacher: {key} 0.04, or 0.02 for small data; more than that only with {warm_up}."
        )
    elif temperature > 0.04:
        advice.append(f"{key}=0.04 (now {temperature:g}), or warm it up from there with {warm_up}.")
    elif temperature > 0:
        advice.append(f"{key}={temperature / 2:g} (now {temperature:g}).")
    if log.setting("loss.center_init") == "zeros" and (log.length or math.inf) < 10_000:
        advice.append("loss.center_init=first_batch, which short runs need.")
    if (log.out_dim or 0) > 1024 and (log.pictures or 0) < 500_000:
        advice.append(
            f"fewer prototypes for small data: {called(log, 'head.out_dim')} 1024 up to 20,000 pictures."
        )
    return tuple(advice)


def against_one_hot(log: TrainingLog) -> tuple[str, ...]:
    """The teacher's output is one prototype."""
    missing = missing_parts(log)
    if missing:
        return missing
    advice = []
    key, momentum = called(log, "loss.center_momentum"), log.setting("loss.center_momentum")
    if momentum is None:
        advice.append(f"a centre that is subtracted and follows: {key} 0.9, not more than 0.99.")
    elif momentum > 0.9:
        advice.append(f"{key}=0.9 (now {momentum:g}): the centre is too slow to follow the teacher.")
    elif momentum > 0:
        advice.append(f"{key}={momentum / 2:g} (now {momentum:g}).")
    temperature = log.setting("loss.teacher_temp")
    if temperature is None or temperature < 0.04:
        advice.append(f"a softer teacher: {called(log, 'loss.teacher_temp')} 0.04.")
    return (*advice, lower_learning_rate(log))


def against_constant(log: TrainingLog) -> tuple[str, ...]:
    """The teacher's output is the same for all pictures, at an entropy between."""
    centre = f"a centre that follows: {with_value(log, 'loss.center_momentum')}, 0.9 in the paper."
    return missing_parts(log) or (centre, lower_learning_rate(log))


def missing_parts(log: TrainingLog) -> tuple[str, ...]:
    """What was switched off comes before all else."""
    parts = {
        "loss.centering=mean: without it one prototype takes all.": log.setting("loss.centering") == "none",
        "loss.sharpening=true: without it the teacher flattens.": log.setting("loss.sharpening") is False,
        "ema.momentum=0.99: the teacher must not be the student.": log.setting("ema.momentum") == 0,
    }
    return tuple(advice for advice, missing in parts.items() if missing)


def lower_learning_rate(log: TrainingLog) -> str:
    """Half of it, or a longer way up."""
    rate, warm_up = (with_value(log, f"optimizer.{name}") for name in ("lr", "warmup_epochs"))
    return f"half the learning rate: {rate}; or a longer warm-up: {warm_up}."


def called(log: TrainingLog, key: str) -> str:
    """A setting by the name that the log's owner knows it by."""
    return key if log.ours or log.config else RELEASED.get(key, key)


def with_value(log: TrainingLog, key: str) -> str:
    """optimizer.lr (now 0.008)"""
    value = log.setting(key)
    return called(log, key) + ("" if value is None else f" (now {value:g})")
