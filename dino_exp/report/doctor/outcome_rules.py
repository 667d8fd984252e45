"""Rules about the outcome of a training: k-NN, failures, an early or incomplete log, and good news."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from dino_exp.dino.verdict import WINDOW
from dino_exp.report.doctor.finding import DOUBTFUL, GOOD, REMARK, Finding, final_metrics, without_k
from dino_exp.report.doctor.training_log import TrainingLog
from dino_exp.runs.run_files import is_file_inside

NEAR_LN_K = 0.98
"""Share of ln K above which a loss does not tell whether the outputs depend on the image."""


def classes_not_learned(log: TrainingLog) -> Iterator[Finding]:
    """Find a k-NN that is no better than that of the untrained network."""
    trained = [knn for at, knn in log.knn if at > 0]
    untrained = next((knn for at, knn in log.knn if at == 0), None)
    judged = not log.verdict.startswith(("collapsed", "diverged", "warming-up"))
    if judged and trained and untrained is not None and trained[-1] < untrained + 1:
        yield Finding(
            DOUBTFUL,
            "It learns something, but not the classes",
            f"k-NN is {trained[-1]:.1f} %, and was {untrained:.1f} % before training.",
            (
                "longer training (trainer.epochs).",
                "stronger augmentation, smaller crops (augment, crops.local_scale): what no augmentation "
                "changes is learned first.",
            ),
        )


def ended_otherwise(log: TrainingLog) -> Iterator[Finding]:
    """Find a program that failed for another reason, or a run that is lost."""
    if log.state == "failed" and log.verdict != "diverged" and log.last.get("loss") is not None:
        file = log.path / "traceback.txt"
        own = is_file_inside(file, log.path)
        words = file.read_text("utf-8", "replace").strip().splitlines() if own else []
        yield Finding(DOUBTFUL, "The program failed", words[-1] if words else "It left no traceback.")
    if log.state == "lost":
        yield Finding(
            DOUBTFUL,
            "The run is lost: its process is gone",
            f"It was at {log.position(log.last)}; {log.state_note}.",
            ("the same command again, which resumes from the last checkpoint.",),
        )


def too_early(log: TrainingLog) -> Iterator[Finding]:
    """Find a log that is too short to judge."""
    if log.early and log.last.get("loss") is not None:
        lines = "1 line" if len(log.records) == 1 else f"{len(log.records)} lines"
        evidence = f"{lines} so far, the last at {log.position(log.last)}."
        yield Finding(REMARK, "Too early for a verdict", evidence)


def unreadable_lines(log: TrainingLog) -> Iterator[Finding]:
    """Find incomplete lines, which were skipped."""
    if log.broken_lines:
        yield Finding(REMARK, "Unreadable lines", f"Lines of the log that were skipped: {log.broken_lines}.")


def nothing_wrong(log: TrainingLog) -> Iterator[Finding]:
    """Yield what speaks for a run in which nothing fatal was found."""
    if log.healthy:
        knn = [value for _, value in log.knn]
        gained = f" k-NN: {knn[0]:.1f} % at first, {knn[-1]:.1f} % now." if len(knn) > 1 else ""
        yield Finding(GOOD, "Healthy: the outputs depend on the image", final_metrics(log) + gained)
    elif not log.ours and not log.early:
        losses = [loss for record in log.records if (loss := record.get("loss")) is not None]
        recent = median(losses[-max(WINDOW, len(losses) // 10) :])
        severity, title = GOOD, "No sign of collapse in the loss"
        if log.ln_k and recent > NEAR_LN_K * log.ln_k:
            severity, title = REMARK, "The loss is near ln K: slow, or not learning"
        elif not log.ln_k:
            severity, title = REMARK, "Not judged: a loss says little without ln K"
        at_ln_k = f" ln K is {log.ln_k:.4g}." if log.ln_k else without_k(log)
        yield Finding(
            severity,
            title,
            f"It went from {losses[0]:.4g} to {losses[-1]:.4g}.{at_ln_k} Only k-NN or the mutual information "
            "of image and prototype can tell whether the outputs depend on the image.",
        )
