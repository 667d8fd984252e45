"""What can be seen in a training's log: a rule for each thing that goes wrong.

Where the log is ours, collapse and divergence are as the run's own verdict had them; of another code's, the
loss and K alone have to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dino_exp.config.relations import warnings
from dino_exp.dino.schedule import constant_schedule, cosine_schedule, linear_schedule
from dino_exp.dino.verdict import ALIKE, WINDOW, most_information
from dino_exp.metrics import DIVERGENCE, ENTROPY, INFORMATION
from dino_exp.report.doctor import remedies
from dino_exp.report.doctor.training_log import AT_LN_K, Record, TrainingLog

FATAL, DOUBTFUL, REMARK, GOOD = "fatal", "doubtful", "remark", "good"

ONE_HOT_LOSS = 0.02
"""Share of ln K below which a loss is that of one prototype for all images. Most healthy runs keep above
0.1; one with a slow center ended at 0.023, and was below 0.02 for single logged steps."""
ABOVE_LN_K = 1.01
"""Share of ln K above which a loss is too high after the first lines; healthy runs fell below 1 by the fourth
of 190."""
NEAR_LN_K = 0.98
"""Share of ln K above which a loss does not tell whether the outputs depend on the image."""
FEWEST_LINES = 10
"""Of a log by steps, to judge by."""
STILL = 5e-4
"""Share of ln K within which a loss stands still; batches alone scatter it more."""
JUMP = 0.25
"""Rise of the loss above the median of the five before, as a share of ln K; of healthy runs at most 0.12."""
GRADIENT_JUMP = 8.0
"""Gradient norm as a multiple of the median of the ten before; of healthy runs at most 3.2."""
FEWEST_HALF_LIVES = 5.0
"""Of the teacher in a run: after so many, 3 % of its weights are still the random ones of the start."""
SHORTEST_MEMORY = 0.035
"""Half-life of the teacher in epochs; the paper has 0.07 to 0.14, and the released code's help advises a
larger λ at 0.035 (batch 256 at λ = 0.996)."""
LONG_MEMORY = 50_000
"""Images in a half-life that are enough however large the data set."""


@dataclass(frozen=True)
class Finding:
    """One thing that is seen in a log."""

    severity: str
    """fatal: collapsed or diverged. doubtful: known to do harm. remark. good."""
    title: str
    evidence: str
    """The numbers, and since when."""
    advice: tuple[str, ...] = ()
    """What to try, the first thing first."""


def diverged(log: TrainingLog) -> Iterator[Finding]:
    """The loss is not finite any more."""
    if log.last.get("loss") is not None and log.words[-1] != "diverged":
        return
    since = _since(log, lambda record: record.get("loss") is None) or log.last
    before = [loss for record in log.records if record.at < since.at and (loss := record.get("loss"))]
    values = f"; before, it was {before[-1]:.4g}" if before else ""
    yield Finding(
        FATAL,
        "Diverged: the loss or its gradient is not a finite number",
        f"Since {_at(log, since)}{values}.",
        (
            remedies.lower_learning_rate(log),
            f"bf16 or float32 instead of fp16: {remedies.called(log, 'trainer.precision')}.",
        ),
    )


def collapsed(log: TrainingLog) -> Iterator[Finding]:
    """The outputs no longer depend on the image, by the run's own verdict."""
    word = log.words[-1]
    if not word.startswith("collapsed"):
        return
    words = dict(zip((record.at for record in log.records), log.words, strict=True))
    called = _since(log, lambda record: words[record.at].startswith("collapsed")) or log.last
    since = _since(log, lambda record: record.at >= called.at or _says_the_same(log, record)) or called
    titles = {
        "collapsed-uniform": "Stuck at ln K: uniform collapse, every prototype is as likely as any other",
        "collapsed-one-hot": "One-hot collapse: one prototype takes every image, and the loss looks fine",
        "collapsed-constant": "Constant output: the same for every image, neither flat nor one-hot",
    }
    advice = {"collapsed-uniform": remedies.against_uniform, "collapsed-one-hot": remedies.against_one_hot}
    yield Finding(
        FATAL,
        titles.get(word, word),
        f"Since {_at(log, since)}. {_shares(log)}",
        advice.get(word, remedies.against_constant)(log),
    )


def _says_the_same(log: TrainingLog, record: Record) -> bool:
    """Whether the outputs were those of a collapse, though it was too early to call it one."""
    share = record.get(INFORMATION.key)
    if share is None or not log.out_dim or not log.batch_size:
        return False
    return share / most_information(log.out_dim, 2 * log.batch_size) < ALIKE


def loss_at_ln_k(log: TrainingLog) -> Iterator[Finding]:
    """Another code's loss is ln K and stays there."""
    ln_k = log.ln_k
    if log.ours or not ln_k:
        return
    since = _since(log, lambda record: abs((record.get("loss") or math.inf) / ln_k - 1) < AT_LN_K)
    if since and _long_enough(log, since):
        yield Finding(
            FATAL,
            f"Stuck at ln K: uniform collapse, as far as the loss can tell (ln {log.out_dim:,} = {ln_k:.4f})",
            f"Since {_at(log, since)} the loss is within {AT_LN_K:.1%} of ln K; it is "
            f"{log.last.get('loss'):.4f} now. A run that only starts slowly scatters below ln K, and leaves "
            "it within the learning rate's warm-up.",
            remedies.against_uniform(log),
        )


def loss_near_zero(log: TrainingLog) -> Iterator[Finding]:
    """Another code's loss is almost nothing, which no healthy run's is."""
    limit, loss = ONE_HOT_LOSS * (log.ln_k or 5.0), log.last.get("loss")
    if log.ours or loss is None:
        return
    since = _since(log, lambda record: record.get("loss") is not None and record.values["loss"] < limit)
    if since and _long_enough(log, since):
        share = f", {loss / log.ln_k:.2%} of ln K" if log.ln_k else ""
        yield Finding(
            FATAL,
            "One-hot collapse: a loss near 0 means that one prototype takes every image",
            f"Since {_at(log, since)} the loss is below {limit:.2g}; it is {loss:.3g} now{share}. "
            "With a slow center a healthy run comes near: one ended at 2.3% of ln K, its k-NN risen from "
            "57 to 70 %. So look at k-NN before you believe this.",
            remedies.against_one_hot(log),
        )


def loss_stands_still(log: TrainingLog) -> Iterator[Finding]:
    """Another code's loss does not move, at a value between: perhaps a constant output."""
    losses = [record.get("loss") for record in log.records]
    scale = log.ln_k or max((loss for loss in losses if loss is not None), default=1.0)
    last = losses[-1]
    if log.ours or last is None or any(loss_at_ln_k(log)) or any(loss_near_zero(log)):
        return
    since = _since(log, lambda record: abs((record.get("loss") or math.inf) - last) < STILL * scale)
    long = since is not None and log.last.at - since.at >= 0.3 * (log.last.at - log.records[0].at)
    if since and long and sum(record.at >= since.at for record in log.records) >= 10:
        yield Finding(
            DOUBTFUL,
            "The loss stands still: perhaps a constant output",
            f"Since {_at(log, since)} it stays within {STILL * scale:.2g} of {last:.4g}, which batches alone "
            "scatter more. Whether the outputs still depend on the image, the loss does not tell."
            + _without_k(log),
            remedies.against_constant(log),
        )


def loss_above_ln_k(log: TrainingLog) -> Iterator[Finding]:
    """Another code's loss is more than knowing nothing costs."""
    ln_k, loss = log.ln_k, log.last.get("loss")
    if log.ours or not ln_k or not loss or loss < ABOVE_LN_K * ln_k or _early(log):
        return
    since = _since(log, lambda record: (record.get("loss") or 0.0) > ln_k) or log.last
    yield Finding(
        DOUBTFUL,
        "The loss is above ln K: the student does not agree with the teacher",
        f"It is so since {_at(log, since)}; now it is {loss:.4g}, {loss / ln_k:.2f} of ln K. A healthy loss "
        "is above ln K in the first steps only, before KL, the student's distance from the teacher, falls.",
        remedies.against_disagreement(log),
    )


def learning_rate_too_high(log: TrainingLog) -> Iterator[Finding]:
    """Far above the usual, or loss or gradient norm jump."""
    times = remedies.times_usual_peak(log)
    scale = log.ln_k or next((loss for record in log.records if (loss := record.get("loss"))), math.inf)
    rises = list(_jumps(log, "loss", 5, lambda value, before: value - before > JUMP * scale))
    gradients = list(_jumps(log, "grad_norm", 10, lambda value, before: value > GRADIENT_JUMP * before > 0))
    far = times > remedies.FAR_ABOVE
    if not rises and not gradients and not far:
        return
    parts = [f"The peak, lr · batch / 256, is {times:.0f} times that of published runs."] if far else []
    if rises:
        record, before = max(rises, key=lambda jump: (jump[0].get("loss") or 0.0) - jump[1])
        parts.append(
            f"The loss jumps {_times(rises)}, first at {_at(log, rises[0][0])}; most at {_at(log, record)}, "
            f"from {before:.3g} to {record.get('loss'):.3g}."
        )
    if gradients:
        record, before = max(gradients, key=lambda jump: (jump[0].get("grad_norm") or 0.0) / jump[1])
        parts.append(
            f"The gradient norm jumps {_times(gradients)}, first at {_at(log, gradients[0][0])}; most at "
            f"{_at(log, record)}, from {before:.3g} to {record.get('grad_norm'):.3g}."
        )
    yield Finding(
        REMARK if _healthy(log) and not rises and not gradients else DOUBTFUL,
        f"Learning rate {times:.0f} times the usual" if far else "Learning rate probably too high",
        " ".join(parts),
        (remedies.lower_learning_rate(log), *remedies.clip_gradients(log)),
    )


def warned_of(log: TrainingLog) -> Iterator[Finding]:
    """Settings of a run of ours that `train.py` warns of."""
    if not log.config:
        return
    try:
        lines = list(warnings(OmegaConf.create(log.config)))
    except (OmegaConfBaseException, AttributeError, TypeError, ValueError):
        yield Finding(
            REMARK, "The configuration is of another version", "Its settings could not be looked at."
        )
        return
    for line in lines:
        setting, _, reason = line.partition(": ")
        yield Finding(REMARK if _healthy(log) else DOUBTFUL, f"train.py warns of {setting}", reason)


def ema_too_slow(log: TrainingLog) -> Iterator[Finding]:
    """The teacher hardly moves within the run."""
    momentum, half_lives = log.setting("ema.momentum"), _half_lives(log)
    if not momentum or half_lives is None or half_lives >= FEWEST_HALF_LIVES:
        return
    length = log.length
    if momentum >= 1:
        return  # `warned_of` says so
    half_life = math.log(0.5) / math.log(momentum)
    # a schedule that ends at 1 moves the teacher half as far as a constant λ
    better = _rounded_momentum(length / 15 / (1 if log.setting("ema.schedule") == "constant" else 2))
    yield Finding(
        DOUBTFUL,
        f"EMA too slow for {length:,} steps",
        f"At λ = {momentum:g} the teacher's half-life is {half_life:,.0f} steps, and λ's schedule makes it "
        f"{half_lives:.1f} half-lives in the whole run: {2**-half_lives:.0%} of the teacher stay the random "
        "weights of the start.",
        (f"ema.momentum={better:g}.", "a longer run (trainer.epochs)."),
    )


def ema_too_fast(log: TrainingLog) -> Iterator[Finding]:
    """The teacher forgets within few images: a small batch, or a small λ."""
    momentum, images, batch = log.setting("ema.momentum"), log.images, log.batch_size
    if not momentum or momentum >= 1 or not images or not batch:
        return
    half_life = math.log(0.5) / math.log(momentum)
    if half_life * batch >= min(LONG_MEMORY, SHORTEST_MEMORY * images):
        return
    length = log.length
    longer = 0.1 * images / batch
    better = _rounded_momentum(min(longer, length / 20) if length else longer)
    if better <= momentum:
        return  # the run is too short for more
    yield Finding(
        REMARK,
        f"EMA fast: batch {batch} is small for λ = {momentum:g}",
        f"The teacher's half-life is {half_life:,.0f} steps of {batch} images, "
        f"{half_life * batch / images:.2g} epochs; the paper's is 0.07 to 0.14.",
        (f"ema.momentum={better:g}.",),
    )


def too_few_images(log: TrainingLog) -> Iterator[Finding]:
    """K is large for the data set."""
    images, k = log.images, log.out_dim
    if not images or not k or images / k >= remedies.IMAGES_PER_PROTOTYPE:
        return
    yield Finding(
        DOUBTFUL,
        f"Too few images for K = {k:,}",
        f"{images:,} images are {images / k:.2g} per prototype; the paper has 20, 1.28 million for 65,536.",
        remedies.fewer_prototypes(log),
    )


def slow(log: TrainingLog) -> Iterator[Finding]:
    """Not collapsed, and hardly learning; or collapsed, if that lasts."""
    if log.words[-1] != "slow":
        return
    title, evidence = "Slow: the outputs hardly depend on the image yet", _shares(log)
    alike = _since(log, lambda record: _says_the_same(log, record))
    if alike:
        title = "Slow: the outputs do not depend on the image at present"
        evidence = f"Since {_at(log, alike)}, which is a collapse if it lasts. {evidence}"
    own = str(log.summary.get("evidence") or "")
    if own and log.summary.get("verdict") == "slow":
        evidence = f"{own[0].upper()}{own[1:]}."
    yield Finding(DOUBTFUL, title, evidence, remedies.against_slow(log))


def recovered(log: TrainingLog) -> Iterator[Finding]:
    """It had collapsed and has not now."""
    bad = [
        record for record, word in zip(log.records, log.words, strict=True) if word.startswith("collapsed")
    ]
    if bad and not log.words[-1].startswith("collapsed") and log.words[-1] != "diverged":
        yield Finding(
            REMARK,
            "It had collapsed, and recovered",
            f"Collapsed at {len(bad)} of {len(log.records)} logged steps, first at {_at(log, bad[0])}, last "
            f"at {_at(log, bad[-1])}; now it is {log.words[-1]}.",
        )


def classes_not_learned(log: TrainingLog) -> Iterator[Finding]:
    """k-NN is no better than the untrained network's."""
    trained = [knn for at, knn in log.knn if at > 0]
    untrained = next((knn for at, knn in log.knn if at == 0), None)
    judged = not log.words[-1].startswith(("collapsed", "diverged", "warming-up"))
    if judged and trained and untrained is not None and trained[-1] < untrained + 1:
        yield Finding(
            DOUBTFUL,
            "Learns something, and not the classes",
            f"k-NN is {trained[-1]:.1f} %, and was {untrained:.1f} % before training.",
            (
                "longer training (trainer.epochs).",
                "stronger augmentation, smaller crops (augment, crops.local_scale): what survives every "
                "augmentation is learned first.",
            ),
        )


def ended_otherwise(log: TrainingLog) -> Iterator[Finding]:
    """The program failed for another reason, or nobody has the run any more."""
    if log.state == "failed" and log.words[-1] != "diverged" and log.last.get("loss") is not None:
        place = log.path / "traceback.txt"
        words = place.read_text(errors="replace").strip().splitlines() if place.is_file() else []
        yield Finding(DOUBTFUL, "The program failed", words[-1] if words else "It left no traceback.")
    if log.state == "lost":
        yield Finding(
            DOUBTFUL,
            "The run is lost: its process is gone",
            f"It was at {_at(log, log.last)}; {log.state_note}.",
            ("the same command again, which goes on from the last checkpoint.",),
        )


def too_early(log: TrainingLog) -> Iterator[Finding]:
    """There is not enough to judge by."""
    if _early(log) and log.last.get("loss") is not None:
        yield Finding(
            REMARK,
            "Too early for a verdict",
            f"{len(log.records)} {'line' if len(log.records) == 1 else 'lines'} so far, the last at "
            f"{_at(log, log.last)}.",
        )


def unreadable_lines(log: TrainingLog) -> Iterator[Finding]:
    """Half-written lines were left out."""
    if log.broken_lines:
        yield Finding(REMARK, "Unreadable lines", f"{log.broken_lines} of the log, left out.")


def nothing_wrong(log: TrainingLog) -> Iterator[Finding]:
    """What speaks for a run that nothing fatal was found in."""
    if _healthy(log):
        knn = [value for _, value in log.knn]
        gained = f" k-NN: {knn[0]:.1f} % at first, {knn[-1]:.1f} % now." if len(knn) > 1 else ""
        yield Finding(GOOD, "Healthy: the outputs depend on the image", _shares(log) + gained)
    elif not log.ours and not _early(log):
        losses = [loss for record in log.records if (loss := record.get("loss")) is not None]
        recent = median(losses[-max(WINDOW, len(losses) // 10) :])
        severity, title = GOOD, "No collapse to be seen in the loss"
        if log.ln_k and recent > NEAR_LN_K * log.ln_k:
            severity, title = REMARK, "The loss is near ln K: slow, or not learning"
        elif not log.ln_k:
            severity, title = REMARK, "Not judged: a loss says little without ln K"
        at_ln_k = f" ln K is {log.ln_k:.4g}." if log.ln_k else _without_k(log)
        yield Finding(
            severity,
            title,
            f"It went from {losses[0]:.4g} to {losses[-1]:.4g}.{at_ln_k} Whether the outputs depend on the "
            "image, only k-NN or the mutual information of image and prototype can tell.",
        )


RULES: tuple[Callable[[TrainingLog], Iterator[Finding]], ...] = (
    diverged,
    collapsed,
    loss_at_ln_k,
    loss_near_zero,
    loss_stands_still,
    loss_above_ln_k,
    learning_rate_too_high,
    warned_of,
    ema_too_slow,
    too_few_images,
    slow,
    classes_not_learned,
    ended_otherwise,
    ema_too_fast,
    recovered,
    too_early,
    unreadable_lines,
)
"""Most severe first."""


def _healthy(log: TrainingLog) -> bool:
    """Whether the run's own verdict is so."""
    return log.words[-1] == "healthy"


def _early(log: TrainingLog) -> bool:
    """Whether there is too little to judge by."""
    if log.ours:
        return log.words[-1] == "warming-up"
    return len(log.records) < (WINDOW if log.unit == "epoch" else FEWEST_LINES)


def _without_k(log: TrainingLog) -> str:
    """What could not be looked at; nothing where K is known."""
    return "" if log.ln_k else " K is not known, so it was not judged against ln K: give it as --out-dim K."


def _since(log: TrainingLog, holds: Callable[[Record], bool]) -> Record | None:
    """The first record of the log's last stretch in which something holds."""
    stretch = list(takewhile(holds, reversed(log.records)))
    return stretch[-1] if stretch else None


def _long_enough(log: TrainingLog, since: Record) -> bool:
    """Whether a stretch up to the end is more than an accident: three epochs, or a tenth of the lines."""
    count = sum(record.at >= since.at for record in log.records)
    enough = WINDOW if log.unit == "epoch" else max(5, len(log.records) / 10)
    return not _early(log) and count >= enough


def _jumps(
    log: TrainingLog, key: str, window: int, is_one: Callable[[float, float], bool]
) -> Iterator[tuple[Record, float]]:
    """Records in which a metric is far above the median of those before, with that median."""
    known = [(record, value) for record in log.records if (value := record.get(key)) is not None]
    for index in range(WINDOW, len(known)):
        before = median(value for _, value in known[max(0, index - window) : index])
        if is_one(known[index][1], before):
            yield known[index][0], before


def _half_lives(log: TrainingLog) -> float | None:
    """How often the distance of the teacher from a student that stood still would be halved in the run."""
    length, schedule = log.length, log.setting("ema.schedule")
    base, final = log.setting("ema.momentum"), log.setting("ema.final_momentum")
    if not length or not base or (schedule != "constant" and final is None):
        return None
    schedules = {"cosine": cosine_schedule, "linear": linear_schedule}
    values = (
        schedules[schedule](base, final, length) if schedule in schedules else constant_schedule(base, length)
    )
    return float(-np.log2(values[: log.stop_step or length]).sum())


def _rounded_momentum(half_life: float) -> float:
    """λ of about a half-life, with two significant digits of 1 − λ."""
    return 1 - float(f"{1 - 2 ** (-1 / max(half_life, 1.0)):.2g}")


def _shares(log: TrainingLog) -> str:
    """The last record's figures in words."""
    last = log.last
    names = {
        ENTROPY.key: ENTROPY.words,
        DIVERGENCE.key: DIVERGENCE.words,
        INFORMATION.key: f"{INFORMATION.words} of image and prototype",
        str(INFORMATION.student_key): "the student's",
    }
    known = [f"{name} {value:.3f}" for key, name in names.items() if (value := last.get(key)) is not None]
    loss = last.get("loss")
    text = f"At {_at(log, last)} the loss is {loss:.4g}" if loss is not None else f"At {_at(log, last)}"
    if loss is not None and log.ln_k:
        text += f", ln K {log.ln_k:.4g}"
    return text + (f"; as shares of ln K: {', '.join(known)}." if known else ".")


def _at(log: TrainingLog, record: Record) -> str:
    return f"{log.unit} {record.at:,}"


def _times(jumps: Sequence[object]) -> str:
    return "once" if len(jumps) == 1 else f"{len(jumps)} times"
