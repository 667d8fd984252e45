"""Rules that find settings which do not fit: learning rate, EMA, number of prototypes, and others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dino_exp.config.relations import warnings
from dino_exp.dino.schedule import constant_schedule, cosine_schedule, linear_schedule
from dino_exp.dino.verdict import WINDOW
from dino_exp.report.doctor import remedies
from dino_exp.report.doctor.finding import DOUBTFUL, REMARK, Finding
from dino_exp.report.doctor.training_log import Record, TrainingLog

JUMP = 0.25
"""Rise of the loss above the median of the five before, as a share of ln K; in healthy runs at most 0.12."""
GRADIENT_JUMP = 8.0
"""Gradient norm as a multiple of the median of the ten before; in healthy runs at most 3.2."""
FEWEST_HALF_LIVES = 5.0
"""Fewest half-lives of the teacher in a run; after so many, 3 % of its weights are still the initial ones."""
SHORTEST_MEMORY = 0.035
"""Shortest half-life of the teacher in epochs. The paper has 0.07 to 0.14; the released code's help advises a
larger λ at 0.035 (batch 256 at λ = 0.996)."""
LONG_MEMORY = 50_000
"""Images in a half-life that are enough for any data set."""


def learning_rate_too_high(log: TrainingLog) -> Iterator[Finding]:
    """Find a peak far above the usual one, or jumps of the loss or the gradient norm."""
    times = remedies.times_usual_peak(log)
    scale = log.ln_k or next((loss for record in log.records if (loss := record.get("loss"))), math.inf)
    rises = list(_jumps(log, "loss", 5, lambda value, before: value - before > JUMP * scale))
    gradients = list(_jumps(log, "grad_norm", 10, lambda value, before: value > GRADIENT_JUMP * before > 0))
    far = times > remedies.FAR_ABOVE
    if not rises and not gradients and not far:
        return
    parts = [f"The peak of the learning rate is {times:.0f} times that of published runs."] if far else []
    if rises:
        parts.append(_in_words(log, "loss", rises, max(rises, key=lambda jump: jump[1] - jump[2])))
    if gradients:
        largest = max(gradients, key=lambda jump: jump[1] / jump[2])
        parts.append(_in_words(log, "gradient norm", gradients, largest))
    yield Finding(
        REMARK if log.healthy and not rises and not gradients else DOUBTFUL,
        f"Learning rate {times:.0f} times the usual" if far else "Learning rate probably too high",
        " ".join(parts),
        (remedies.lower_learning_rate(log), *remedies.clip_gradients(log)),
    )


Jump = tuple[Record, float, float]
"""A record, the value there, and the median of the values before."""


def _jumps(
    log: TrainingLog, key: str, window: int, is_jump: Callable[[float, float], bool]
) -> Iterator[Jump]:
    """Yield the records in which a metric is far above the median of the values before."""
    known = [(record, value) for record in log.records if (value := record.get(key)) is not None]
    for index in range(WINDOW, len(known)):
        before = median(value for _, value in known[max(0, index - window) : index])
        if is_jump(known[index][1], before):
            yield *known[index], before


def _in_words(log: TrainingLog, name: str, jumps: list[Jump], largest: Jump) -> str:
    record, value, before = largest
    times = f"{len(jumps)} times, first at {log.position(jumps[0][0])}; the largest jump is"
    return (
        f"The {name} jumps {times if len(jumps) > 1 else 'once,'} at {log.position(record)}, from "
        f"{before:.3g} to {value:.3g}."
    )


def warned_of(log: TrainingLog) -> Iterator[Finding]:
    """Find settings that `train.py` warns of."""
    if not log.config:
        return
    try:
        lines = list(warnings(OmegaConf.create(log.config)))
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError):
        yield Finding(
            REMARK, "The configuration is from another version", "Its settings could not be checked."
        )
        return
    for line in lines:
        setting, _, reason = line.partition(": ")
        yield Finding(REMARK if log.healthy else DOUBTFUL, f"train.py warns of {setting}", reason)


def ema_too_slow(log: TrainingLog) -> Iterator[Finding]:
    """Find a teacher that hardly moves within the run; `warned_of` finds λ = 1."""
    momentum, half_lives, length = _momentum(log), _half_lives(log), log.length
    if not momentum or momentum >= 1 or half_lives is None or half_lives >= FEWEST_HALF_LIVES:
        return
    half_life = math.log(0.5) / math.log(momentum)
    # a schedule that ends at 1 moves the teacher half as far as a constant λ
    steps = length / 15 / (1 if log.setting("ema.schedule") == "constant" else 2)
    better = _rounded_momentum(steps * log.batch_factor)
    yield Finding(
        DOUBTFUL,
        f"EMA too slow for {length:,} steps",
        f"At λ = {momentum:g} the teacher's half-life is {half_life:,.0f} steps, and λ's schedule makes it "
        f"{half_lives:.1f} half-lives in the entire run: {2**-half_lives:.0%} of its initial "
        "random weights remain at the end.",
        (f"ema.momentum={better:g}.", "a longer run (trainer.epochs)."),
    )


def ema_too_fast(log: TrainingLog) -> Iterator[Finding]:
    """Find a teacher that forgets within few images: a small batch, or a small λ."""
    momentum, images, batch = _momentum(log), log.images, log.batch_size
    if not momentum or momentum >= 1 or not images or not batch:
        return
    half_life = math.log(0.5) / math.log(momentum)
    if half_life * batch >= min(LONG_MEMORY, SHORTEST_MEMORY * images):
        return
    length = log.length
    longer = 0.1 * images / batch
    better = _rounded_momentum((min(longer, length / 20) if length else longer) * log.batch_factor)
    if better <= momentum ** (1 / log.batch_factor):
        return  # the run is too short for a larger λ
    yield Finding(
        REMARK,
        f"EMA fast: batch {batch} is small for λ = {momentum:g}",
        f"The teacher's half-life is {half_life:,.0f} steps of {batch} images, "
        f"{half_life * batch / images:.2g} epochs; the paper's is 0.07 to 0.14.",
        (f"ema.momentum={better:g}.",),
    )


def _momentum(log: TrainingLog) -> float | None:
    """Return λ as a step uses it."""
    momentum = log.setting("ema.momentum")
    return momentum**log.batch_factor if momentum else momentum


def _half_lives(log: TrainingLog) -> float | None:
    """Return how often the run would halve the distance of the teacher from a student that does not move."""
    length, schedule = log.length, log.setting("ema.schedule")
    base, final = log.setting("ema.momentum"), log.setting("ema.final_momentum")
    if not length or not base or (schedule != "constant" and final is None):
        return None
    base, final = base**log.batch_factor, (final or 0.0) ** log.batch_factor
    schedules = {"cosine": cosine_schedule, "linear": linear_schedule}
    values = (
        schedules[schedule](base, final, length) if schedule in schedules else constant_schedule(base, length)
    )
    return float(-np.log2(values[: log.stop_step or length]).sum())


def _rounded_momentum(half_life: float) -> float:
    """Return λ for about this half-life in steps, with two significant digits of 1 − λ."""
    return 1 - float(f"{1 - 2 ** (-1 / max(half_life, 1.0)):.2g}")


def too_few_images(log: TrainingLog) -> Iterator[Finding]:
    """Find a K that is large for the data set."""
    images, k = log.images, log.out_dim
    if not images or not k or images / k >= remedies.IMAGES_PER_PROTOTYPE:
        return
    yield Finding(
        DOUBTFUL,
        f"Too few images for K = {k:,}",
        f"{images:,} images are {images / k:.2g} per prototype; the paper has 20 (1.28 million for 65,536).",
        remedies.fewer_prototypes(log),
    )
