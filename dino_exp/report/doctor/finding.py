"""A finding of the doctor, and phrases that several rules use in its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from dino_exp.metrics import DIVERGENCE, ENTROPY, INFORMATION
from dino_exp.report.doctor.training_log import TrainingLog

FATAL, DOUBTFUL, REMARK, GOOD = "fatal", "doubtful", "remark", "good"


@dataclass(frozen=True)
class Finding:
    """One thing that a log shows."""

    severity: str
    """fatal: collapsed or diverged. doubtful: known to do harm. remark. good."""
    title: str
    evidence: str
    """The numbers, and since when."""
    advice: tuple[str, ...] = ()
    """What to try, the most promising first."""


def final_metrics(log: TrainingLog) -> str:
    """Return a sentence with the metrics of the last record."""
    names = {
        ENTROPY.key: ENTROPY.words,
        DIVERGENCE.key: DIVERGENCE.words,
        INFORMATION.key: f"{INFORMATION.words} of image and prototype",
        str(INFORMATION.student_key): "the student's",
    }
    known = [f"{name} {value:.3f}" for key, name in names.items() if (value := log.last.get(key)) is not None]
    loss = log.last.get("loss")
    text = f"At {log.position(log.last)}" + ("" if loss is None else f" the loss is {loss:.4g}")
    if loss is not None and log.ln_k:
        text += f", ln K {log.ln_k:.4g}"
    return text + (f"; as shares of ln K: {', '.join(known)}." if known else ".")


def without_k(log: TrainingLog) -> str:
    """Return a sentence that says what was not compared, or nothing if K is known."""
    unknown = " K is unknown, so the loss was not compared with ln K: give it as --out-dim K."
    return "" if log.ln_k else unknown
