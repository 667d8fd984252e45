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
from dino_exp.report import remedies
from dino_exp.report.training_log import AT_LN_K, Record, TrainingLog
from dino_exp.schedule import constant_schedule, cosine_schedule, linear_schedule
from dino_exp.verdict import ALIKE, STUDENTS, TEACHERS, WINDOW, most_information

FATAL, DOUBTFUL, REMARK, GOOD = "fatal", "doubtful", "remark", "good"

ONE_HOT_LOSS = 0.02
"""Share of ln K below which a loss is that of one prototype for all pictures; good runs keep above 0.1."""
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
"""Pictures in a half-life that are enough however large the data set."""
PICTURES_PER_PROTOTYPE = 7.0
"""The paper has 20; the smallest ratio in what others advise is 7.6, 65,536 from 500,000 pictures."""


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
    """The outputs no longer depend on the picture, by the run's own verdict."""
    word = log.words[-1]
    if not word.startswith("collapsed"):
        return
    words = dict(zip((record.at for record in log.records), log.words, strict=True))
    called = _since(log, lambda record: words[record.at].startswith("collapsed")) or log.last
    since = _since(log, lambda record: record.at >= called.at or _says_the_same(log, record)) or called
    titles = {
        "collapsed-uniform": "Stuck at ln K: uniform collapse, every prototype is as likely as any other",
        "collapsed-one-hot": "One-hot collapse: one prototype takes every picture, and the loss looks fine",
        "collapsed-constant": "Constant output: the same for every picture, neither flat nor one-hot",
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
    shares = [share for name in (TEACHERS, STUDENTS) if (share := record.get(name)) is not None]
    if not shares or not log.out_dim or not log.batch_size:
        return False
    return min(shares) / most_information(log.out_dim, 2 * log.batch_size) < ALIKE


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
            "One-hot collapse: a loss near 0 means that one prototype takes every picture",
            f"Since {_at(log, since)} the loss is below {limit:.2g}; it is {loss:.3g} now{share}. "
            "A healthy loss stays above a tenth of ln K.",
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
            "scatter more. Whether the outputs still depend on the picture, the loss does not tell.",
            remedies.against_constant(log),
        )


def learning_rate_too_high(log: TrainingLog) -> Iterator[Finding]:
    """Loss or gradient norm jump."""
    scale = log.ln_k or next((loss for record in log.records if (loss := record.get("loss"))), None)
    if not scale:
        return
    rises = list(_jumps(log, "loss", 5, lambda value, before: value - before > JUMP * scale))
    gradients = list(_jumps(log, "grad_norm", 10, lambda value, before: value > GRADIENT_JUMP * before > 0))
    if not rises and not gradients:
        return
    parts = []
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
        DOUBTFUL,
        "Learning rate probably too high",
        " ".join(parts),
        (
            remedies.lower_learning_rate(log),
            f"gradient clipping at 3 or less: {remedies.with_value(log, 'optimizer.clip_grad')}.",
        ),
    )


def known_to_fail(log: TrainingLog) -> Iterator[Finding]:
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
        yield Finding(DOUBTFUL, f"Known to fail: {setting}", reason)


def ema_too_slow(log: TrainingLog) -> Iterator[Finding]:
    """The teacher hardly moves within the run."""
    momentum, half_lives = log.setting("ema.momentum"), _half_lives(log)
    if not momentum or half_lives is None or half_lives >= FEWEST_HALF_LIVES:
        return
    length = log.length
    if momentum >= 1:
        return  # `known_to_fail` says so
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
    """The teacher forgets within few pictures: a small batch, or a small λ."""
    momentum, pictures, batch = log.setting("ema.momentum"), log.pictures, log.batch_size
    if not momentum or momentum >= 1 or not pictures or not batch:
        return
    half_life = math.log(0.5) / math.log(momentum)
    if half_life * batch >= min(LONG_MEMORY, SHORTEST_MEMORY * pictures):
        return
    length = log.length
    longer = 0.1 * pictures / batch
    better = _rounded_momentum(min(longer, length / 20) if length else longer)
    if better <= momentum:
        return  # the run is too short for more
    yield Finding(
        REMARK,
        f"EMA fast: batch {batch} is small for λ = {momentum:g}",
        f"The teacher's half-life is {half_life:,.0f} steps of {batch} pictures, "
        f"{half_life * batch / pictures:.2g} epochs; the paper's is 0.07 to 0.14.",
        (f"ema.momentum={better:g}.",),
    )


def too_few_pictures(log: TrainingLog) -> Iterator[Finding]:
    """K is large for the data set."""
    pictures, k = log.pictures, log.out_dim
    if not pictures or not k or pictures / k >= PICTURES_PER_PROTOTYPE:
        return
    better = 2 ** max(6, int(math.log2(pictures / 10)))
    yield Finding(
        DOUBTFUL,
        f"Too few pictures for K = {k:,}",
        f"{pictures:,} pictures are {pictures / k:.2g} per prototype; the paper has 20, 1.28 million for "
        "65,536.",
        (f"{remedies.called(log, 'head.out_dim')}={better}.",) if better < k else (),
    )


def slow(log: TrainingLog) -> Iterator[Finding]:
    """Not collapsed, and hardly learning."""
    if log.words[-1] == "slow":
        yield Finding(
            DOUBTFUL,
            "Slow: the outputs hardly depend on the picture yet",
            _shares(log),
            (
                "wait: runs have come out of this, with a falling entropy and a rising mutual information.",
                *remedies.against_uniform(log)[:1],
            ),
        )


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
    """The program failed for another reason."""
    if log.state == "failed" and log.words[-1] != "diverged" and log.last.get("loss") is not None:
        place = log.path / "traceback.txt"
        words = place.read_text(errors="replace").strip().splitlines() if place.is_file() else []
        yield Finding(DOUBTFUL, "The program failed", words[-1] if words else "It left no traceback.")


def too_early(log: TrainingLog) -> Iterator[Finding]:
    """There is not enough to judge by."""
    early = log.words[-1] == "warming-up" if log.ours else len(log.records) < WINDOW
    if early and log.last.get("loss") is not None:
        yield Finding(
            REMARK,
            "Too early for a verdict",
            f"{len(log.records)} lines so far, the last at {_at(log, log.last)}.",
        )


def unreadable_lines(log: TrainingLog) -> Iterator[Finding]:
    """Half-written lines were left out."""
    if log.broken_lines:
        yield Finding(REMARK, "Unreadable lines", f"{log.broken_lines} of the log, left out.")


def nothing_wrong(log: TrainingLog) -> Iterator[Finding]:
    """What speaks for a run that nothing fatal was found in."""
    if log.words[-1] == "healthy":
        knn = [value for _, value in log.knn]
        gained = f" k-NN: {knn[0]:.1f} % at first, {knn[-1]:.1f} % now." if len(knn) > 1 else ""
        yield Finding(GOOD, "Healthy: the outputs depend on the picture", _shares(log) + gained)
    elif not log.ours:
        first, last = log.records[0].get("loss"), log.last.get("loss")
        at_ln_k = f" ln K is {log.ln_k:.4g}." if log.ln_k else ""
        yield Finding(
            GOOD,
            "No collapse to be seen in the loss",
            f"It went from {first or math.nan:.4g} to {last or math.nan:.4g}.{at_ln_k} Whether the outputs "
            "depend on the picture, only k-NN or the mutual information of picture and prototype can tell.",
        )


RULES: tuple[Callable[[TrainingLog], Iterator[Finding]], ...] = (
    diverged,
    collapsed,
    loss_at_ln_k,
    loss_near_zero,
    loss_stands_still,
    learning_rate_too_high,
    known_to_fail,
    ema_too_slow,
    too_few_pictures,
    slow,
    classes_not_learned,
    ended_otherwise,
    ema_too_fast,
    recovered,
    too_early,
    unreadable_lines,
)
"""Most severe first."""


def _since(log: TrainingLog, holds: Callable[[Record], bool]) -> Record | None:
    """The first record of the log's last stretch in which something holds."""
    stretch = list(takewhile(holds, reversed(log.records)))
    return stretch[-1] if stretch else None


def _long_enough(log: TrainingLog, since: Record) -> bool:
    """Whether a stretch up to the end is more than an accident: three epochs, or a tenth of the lines."""
    count = sum(record.at >= since.at for record in log.records)
    return count >= (WINDOW if log.unit == "epoch" else max(5, len(log.records) / 10))


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
        "teacher/entropy_share": "teacher entropy",
        "kl_share": "KL",
        "teacher/mutual_information_share": "mutual information of picture and prototype",
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
