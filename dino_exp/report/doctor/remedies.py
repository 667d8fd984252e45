"""Advice of the doctor, the most promising first."""

from __future__ import annotations

import math
import re
from itertools import takewhile

from dino_exp.config.per_step import peak_lr
from dino_exp.report.doctor.training_log import TrainingLog
from dino_exp.report.run_data import UNFINISHED
from dino_exp.runs.run_files import number

RELEASED = {
    "loss.teacher_temp": "--teacher_temp",
    "loss.warmup_teacher_temp_epochs": "--warmup_teacher_temp_epochs",
    "loss.center_momentum": "center_momentum of DINOLoss",
    "ema.momentum": "--momentum_teacher",
    "optimizer.lr": "--lr",
    "optimizer.warmup_epochs": "--warmup_epochs",
    "optimizer.clip_grad": "--clip_grad",
    "trainer.precision": "--use_fp16 false",
    "head.out_dim": "--out_dim",
}
"""Names of our keys in the released code."""

USUAL_PEAKS = {"adamw": 1e-3, "sgd": 0.06, "lars": 4.8}
"""Peak of the learning rate, lr · batch / 256, in published runs, by optimizer."""
FAR_ABOVE = 5.0
"""Multiple of the usual peak. Our runs at up to 4 times were as good as others; at 600 none learned."""
IMAGES_PER_PROTOTYPE = 7.0
"""Fewest images per prototype. The paper has 20; the smallest that others advise is 7.6 (500,000 images)."""
SHARPEST = 0.02
"""The lowest advised teacher temperature; lower ones turn the teacher's noise into targets."""


def against_uniform(log: TrainingLog) -> tuple[str, ...]:
    """Return advice for a uniform teacher output."""
    advice = sharper_teacher(log)
    if log.setting("loss.center_init") == "zeros" and (log.length or math.inf) < 10_000:
        advice += ("loss.center_init=first_batch, which short runs need.",)
    return _in_order(log, (*advice, *fewer_prototypes(log), lower_learning_rate(log)))


def against_one_hot(log: TrainingLog) -> tuple[str, ...]:
    """Return advice for a teacher output of one prototype."""
    advice = []
    key, momentum = called(log, "loss.center_momentum"), log.setting("loss.center_momentum")
    if momentum is None:
        advice.append(f"a center that follows the teacher: {key} 0.9, at most 0.99.")
    elif momentum > 0.9:
        advice.append(f"{key}=0.9 (now {momentum:g}): the center is too slow to follow the teacher.")
    elif momentum > 0:
        advice.append(f"{key}={momentum / 2:g} (now {momentum:g}).")
    temperature = log.setting("loss.teacher_temp")
    if temperature is None:
        advice.append(f"a softer teacher: {called(log, 'loss.teacher_temp')} 0.04.")
    elif temperature < 0.04:
        advice.append(f"loss.teacher_temp=0.04 (now {temperature:g}): a softer teacher.")
    return _in_order(log, (*advice, lower_learning_rate(log)))


def against_constant(log: TrainingLog) -> tuple[str, ...]:
    """Return advice for an output that is the same for all images, neither uniform nor one-hot."""
    return _in_order(log, (following_center(log), lower_learning_rate(log)))


def against_disagreement(log: TrainingLog) -> tuple[str, ...]:
    """Return advice for a student that does not agree with its teacher."""
    teacher = f"a teacher that moves slowly: {with_value(log, 'ema.momentum')}, 0.996 in the paper."
    return _in_order(log, (lower_learning_rate(log), teacher, following_center(log)))


def against_slow(log: TrainingLog) -> tuple[str, ...]:
    """Return advice for outputs that hardly depend on the image."""
    longer = "wait" if log.state in ("", *UNFINISHED) else "longer training (trainer.epochs)"
    reason = "runs have recovered from this; entropy then falls and mutual information rises."
    return _in_order(log, (f"{longer}: {reason}", *sharper_teacher(log)))


def _in_order(log: TrainingLog, advice: tuple[str, ...]) -> tuple[str, ...]:
    """Put a learning rate that is far too high first; name switched-off parts instead of other advice."""
    first = (lower_learning_rate(log),) if times_usual_peak(log) > FAR_ABOVE else ()
    return tuple(dict.fromkeys((*first, *(missing_parts(log) or advice))))


def missing_parts(log: TrainingLog) -> tuple[str, ...]:
    """Return advice to switch on what the configuration has switched off."""
    centering, sharpening = log.setting("loss.centering") == "none", log.setting("loss.sharpening") is False
    advice = []
    if centering and sharpening:
        advice.append(
            "loss.centering=mean loss.sharpening=true: with neither, the easiest way to agree is the same "
            "output for every image."
        )
    elif centering:
        advice.append("loss.centering=mean: without it one prototype takes every image.")
    elif sharpening:
        advice.append("loss.sharpening=true: without it the teacher flattens.")
    if log.setting("ema.momentum") == 0:
        advice.append("ema.momentum=0.99: the teacher must not be the student.")
    return tuple(advice)


def sharper_teacher(log: TrainingLog) -> tuple[str, ...]:
    """Return advice for a lower teacher temperature, if there is room for one."""
    key, warm_up = called(log, "loss.teacher_temp"), called(log, "loss.warmup_teacher_temp_epochs")
    temperature = log.setting("loss.teacher_temp")
    if temperature is None:
        return (f"a sharper teacher: {key} 0.04, or 0.02 for small data; more only with {warm_up}.",)
    if temperature > 0.04:
        return (f"{key}=0.04 (now {temperature:g}), or warm it up from there with {warm_up}.",)
    if temperature > SHARPEST:
        return (f"{key}={max(temperature / 2, SHARPEST):g} (now {temperature:g}).",)
    return ()


def following_center(log: TrainingLog) -> str:
    """Return advice for a faster center."""
    momentum = log.setting("loss.center_momentum")
    if momentum is not None and momentum > 0.9:
        return f"loss.center_momentum=0.9 (now {momentum:g}), as in the paper: a center that follows."
    return f"a center that follows: {with_value(log, 'loss.center_momentum')}, 0.9 in the paper."


def fewer_prototypes(log: TrainingLog) -> tuple[str, ...]:
    """Return advice for a smaller K if it is too large for the data set, in words if that is not known."""
    key, k, images = called(log, "head.out_dim"), log.out_dim or 0, log.images
    if not images:
        few = f"fewer prototypes for small data: {key}, at most a tenth of the number of images."
        return (few,) if k > 1024 else ()
    better = 2 ** max(6, int(math.log2(images / 10)))
    return (f"{key}={better}.",) if images / IMAGES_PER_PROTOTYPE < k and better < k else ()


def times_usual_peak(log: TrainingLog) -> float:
    """Return the peak of the learning rate as a multiple of the usual one; 0 if not known."""
    rate, batch = number(log.setting("optimizer.lr")), number(log.batch_size)
    usual = USUAL_PEAKS.get(str(log.setting("optimizer._target_")).rpartition(".")[2])
    if not (rate and batch and usual):
        return 0.0
    rule = str(log.setting("optimizer.lr_rule") or "linear")
    return peak_lr(rate, batch, rule, number(log.setting("trainer.reference_batch"))) / usual


def lower_learning_rate(log: TrainingLog) -> str:
    """Return advice for the usual learning rate if it is far above that, else for half or a longer warmup."""
    times = times_usual_peak(log)
    if times > FAR_ABOVE:
        rate = log.setting("optimizer.lr")
        return f"optimizer.lr={rate / times:.2g} (now {rate:g}, {times:.0f} times what is usual)."
    warm_up, known = with_value(log, "optimizer.warmup_epochs"), number(log.setting("optimizer.lr"))
    if known:
        return f"optimizer.lr={known / 2:.3g}, half of it (now {known:g}); or a longer warmup: {warm_up}."
    return f"half the learning rate: {called(log, 'optimizer.lr')}; or a longer warmup: {warm_up}."


def clip_gradients(log: TrainingLog) -> tuple[str, ...]:
    """Return advice to clip gradients, unless they are clipped at 3 or less."""
    limit = number(log.setting("optimizer.clip_grad"))
    if limit is not None and 0 < limit <= 3:
        return ()
    return (f"gradient clipping at 3 or less: {with_value(log, 'optimizer.clip_grad')}.",)


def words_of(advice: str) -> tuple[str, ...]:
    """Return the overrides that advice begins with, as they can be typed; none if it is advice in words."""
    found = (re.match(r"([a-z_]+(?:\.[a-z_]+)+=[\w.+-]*\w)[.:;,]?$", word) for word in advice.split())
    return tuple(each[1] for each in takewhile(bool, found) if each)


def called(log: TrainingLog, key: str) -> str:
    """Return the name of a setting in the code that wrote the log."""
    return key if log.ours or log.config else RELEASED.get(key, key)


def with_value(log: TrainingLog, key: str) -> str:
    """Return the name of a setting and its value, e.g. optimizer.lr (now 0.008)."""
    value = log.setting(key)
    return called(log, key) + ("" if value is None else f" (now {value:g})")
