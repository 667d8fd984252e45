"""Rules that find collapse and divergence in a log.

For a log of this project they repeat the verdicts of the run; for another code's they use the loss and K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile

from dino_exp.dino.verdict import ALIKE, SLOW, WINDOW, most_information
from dino_exp.metrics import INFORMATION
from dino_exp.report.doctor import remedies
from dino_exp.report.doctor.finding import DOUBTFUL, FATAL, REMARK, Finding, final_metrics, without_k
from dino_exp.report.doctor.training_log import AT_LN_K, Record, TrainingLog

ONE_HOT_LOSS = 0.02
"""Share of ln K below which a loss means a one-hot collapse. Most healthy runs stay above 0.1; one with a
slow center ended at 0.023, and was below 0.02 at single logged steps."""
ABOVE_LN_K = 1.01
"""Share of ln K above which a loss is too high after the first lines; healthy runs fell below 1 by the fourth
of 190 lines."""
STILL = 5e-4
"""Share of ln K within which a loss stands still; the variation between batches alone is larger."""


def diverged(log: TrainingLog) -> Iterator[Finding]:
    """Find a loss that is no longer finite."""
    if log.last.get("loss") is not None and log.verdict != "diverged":
        return
    since = onset(log)
    before = [loss for record in log.records if record.at < since.at and (loss := record.get("loss"))]
    values = f"; before, it was {before[-1]:.4g}" if before else ""
    yield Finding(
        FATAL,
        "Diverged: the loss or its gradient is not a finite number",
        f"Since {log.position(since)}{values}.",
        (
            remedies.lower_learning_rate(log),
            f"bf16 or float32 instead of fp16: {remedies.called(log, 'trainer.precision')}.",
        ),
    )


def collapsed(log: TrainingLog) -> Iterator[Finding]:
    """Find outputs that no longer depend on the image, according to the run's own verdict."""
    if not log.verdict.startswith("collapsed"):
        return
    since = onset(log)
    titles = {
        "collapsed-uniform": "Stuck at ln K: uniform collapse, every prototype is as likely as any other",
        "collapsed-one-hot": "One-hot collapse: one prototype takes every image, and the loss looks fine",
        "collapsed-constant": "Constant output: the same for every image, neither uniform nor one-hot",
    }
    advice = {"collapsed-uniform": remedies.against_uniform, "collapsed-one-hot": remedies.against_one_hot}
    yield Finding(
        FATAL,
        titles.get(log.verdict, log.verdict),
        f"Since {log.position(since)}. {final_metrics(log)}",
        advice.get(log.verdict, remedies.against_constant)(log),
    )


def onset(log: TrainingLog) -> Record:
    """Return the first record of the present collapse or divergence, which is before the verdict."""
    if not log.verdict.startswith("collapsed"):
        return log.since(lambda record: record.get("loss") is None) or log.last
    words = dict(zip((record.at for record in log.records), log.words, strict=True))
    called = log.since(lambda record: words[record.at].startswith("collapsed")) or log.last
    return log.since(lambda record: record.at >= called.at or _outputs_alike(log, record)) or called


def decline(log: TrainingLog) -> Record:
    """Return the first record of the decline that ended in the collapse: at the onset, or before.

    From there on the mutual information was below half of its last peak before the onset. Earlier peaks do
    not count: a sharp teacher has its highest one at the first step, where it comes from random features.
    """
    begin, peak = onset(log), 0.0
    descent: list[tuple[float, Record]] = []
    for record in reversed([record for record in log.records if record.at < begin.at]):
        value = record.get(INFORMATION.key) or 0.0
        if peak >= SLOW and value < peak / 2:
            break
        peak = max(peak, value)
        descent.append((value, record))
    low = list(takewhile(lambda each: each[0] < peak / 2, descent))
    return low[-1][1] if low else begin


def _outputs_alike(log: TrainingLog, record: Record) -> bool:
    """Return whether the outputs were those of a collapse, although it was too early for that verdict."""
    share = record.get(INFORMATION.key)
    if share is None or not log.out_dim or not log.batch_size:
        return False
    return share / most_information(log.out_dim, 2 * log.batch_size) < ALIKE


def loss_at_ln_k(log: TrainingLog) -> Iterator[Finding]:
    """Find another code's loss that is ln K and stays there."""
    ln_k = log.ln_k
    if log.ours or not ln_k:
        return
    since = log.since(lambda record: abs((record.get("loss") or math.inf) / ln_k - 1) < AT_LN_K)
    if since and _long_enough(log, since):
        yield Finding(
            FATAL,
            f"Stuck at ln K: uniform collapse, as far as the loss can tell (ln {log.out_dim:,} = {ln_k:.4f})",
            f"Since {log.position(since)} the loss is within {AT_LN_K:.1%} of ln K; it is "
            f"{log.last.get('loss'):.4f} now. The loss of a run that only starts slowly varies below ln K, "
            "and leaves it during the learning rate's warmup.",
            remedies.against_uniform(log),
        )


def loss_near_zero(log: TrainingLog) -> Iterator[Finding]:
    """Find another code's loss that is almost 0, which no healthy run reaches."""
    limit, loss = ONE_HOT_LOSS * (log.ln_k or 5.0), log.last.get("loss")
    if log.ours or loss is None:
        return
    since = log.since(lambda record: record.get("loss") is not None and record.values["loss"] < limit)
    if since and _long_enough(log, since):
        share = f", {loss / log.ln_k:.2%} of ln K" if log.ln_k else ""
        yield Finding(
            FATAL,
            "One-hot collapse: a loss near 0 means that one prototype takes every image",
            f"Since {log.position(since)} the loss is below {limit:.2g}; it is {loss:.3g} now{share}. "
            "With a slow center a healthy run comes near: one ended at 2.3% of ln K, while its k-NN rose "
            "from 57 to 70 %. Check the k-NN before you trust this finding.",
            remedies.against_one_hot(log),
        )


def loss_stands_still(log: TrainingLog) -> Iterator[Finding]:
    """Find another code's loss that does not move, between 0 and ln K: perhaps a constant output."""
    losses = [record.get("loss") for record in log.records]
    scale = log.ln_k or max((loss for loss in losses if loss is not None), default=1.0)
    last = losses[-1]
    if log.ours or last is None or any(loss_at_ln_k(log)) or any(loss_near_zero(log)):
        return
    since = log.since(lambda record: abs((record.get("loss") or math.inf) - last) < STILL * scale)
    long = since is not None and log.last.at - since.at >= 0.3 * (log.last.at - log.records[0].at)
    if since and long and log.count_since(since) >= 10:
        yield Finding(
            DOUBTFUL,
            "The loss stands still: perhaps a constant output",
            f"Since {log.position(since)} it stays within {STILL * scale:.2g} of {last:.4g}; different "
            "batches alone make it vary more. The loss does not tell whether the outputs still depend on the "
            "image." + without_k(log),
            remedies.against_constant(log),
        )


def loss_above_ln_k(log: TrainingLog) -> Iterator[Finding]:
    """Find another code's loss that is higher than that of a uniform output."""
    ln_k, loss = log.ln_k, log.last.get("loss")
    if log.ours or not ln_k or not loss or loss < ABOVE_LN_K * ln_k or log.early:
        return
    since = log.since(lambda record: (record.get("loss") or 0.0) > ln_k) or log.last
    yield Finding(
        DOUBTFUL,
        "The loss is above ln K: the student does not agree with the teacher",
        f"Since {log.position(since)}; it is {loss:.4g} now, {loss / ln_k:.2f} times ln K. A healthy loss is "
        "above ln K only in the first steps, before KL, the student's distance from the teacher, falls.",
        remedies.against_disagreement(log),
    )


def _long_enough(log: TrainingLog, since: Record) -> bool:
    """Return whether a stretch up to the end is long enough: three epochs, or a tenth of the lines."""
    enough = WINDOW if log.unit == "epoch" else max(5, len(log.records) / 10)
    return not log.early and log.count_since(since) >= enough


def slow(log: TrainingLog) -> Iterator[Finding]:
    """Find a run that has not collapsed but hardly learns, or whose collapse has not lasted yet."""
    if log.verdict != "slow":
        return
    title, evidence = "Slow: the outputs hardly depend on the image yet", final_metrics(log)
    alike = log.since(lambda record: _outputs_alike(log, record))
    if alike:
        title = "Slow: the outputs do not depend on the image at present"
        evidence = f"Since {log.position(alike)}, which is a collapse if it lasts. {evidence}"
    own = str(log.summary.get("evidence") or "")
    if own and log.summary.get("verdict") == "slow":
        evidence = f"{own[0].upper()}{own[1:]}."
    yield Finding(DOUBTFUL, title, evidence, remedies.against_slow(log))


def recovered(log: TrainingLog) -> Iterator[Finding]:
    """Find a collapse that did not last."""
    pairs = zip(log.records, log.words, strict=True)
    bad = [record for record, word in pairs if word.startswith("collapsed")]
    if bad and not log.verdict.startswith(("collapsed", "diverged")):
        yield Finding(
            REMARK,
            "It had collapsed, and recovered",
            f"Collapsed at {len(bad)} of {len(log.records)} logged steps, first at {log.position(bad[0])}, "
            f"last at {log.position(bad[-1])}; it is {log.verdict} now.",
        )
