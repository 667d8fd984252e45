"""`python report.py doctor RUN`: a diagnosis of a training from its log, and what to try first."""

from __future__ import annotations

from pathlib import Path

from rich.padding import Padding

from dino_exp.console import Console
from dino_exp.report.doctor import collapse_rules, outcome_rules, settings_rules
from dino_exp.report.doctor.finding import DOUBTFUL, FATAL, Finding
from dino_exp.report.doctor.training_log import TrainingLog, read_log

RULES = (
    collapse_rules.diverged,
    collapse_rules.collapsed,
    collapse_rules.loss_at_ln_k,
    collapse_rules.loss_near_zero,
    collapse_rules.loss_stands_still,
    collapse_rules.loss_above_ln_k,
    settings_rules.learning_rate_too_high,
    settings_rules.warned_of,
    settings_rules.ema_too_slow,
    settings_rules.too_few_images,
    collapse_rules.slow,
    outcome_rules.classes_not_learned,
    outcome_rules.ended_otherwise,
    settings_rules.ema_too_fast,
    collapse_rules.recovered,
    outcome_rules.too_early,
    outcome_rules.unreadable_lines,
)
"""All rules, in the order in which findings of the same severity are shown."""

STYLES = {"fatal": "bold red", "doubtful": "yellow", "remark": "cyan", "good": "green"}
"""Styles by severity, the most severe first."""


def doctor(path: Path, out_dim: int | None, console: Console) -> int:
    """Print the diagnosis of a run directory or a log file.

    Returns 1 if the training collapsed or diverged, otherwise 0.

    Raises:
        UserError: `path` has no log of a training.
    """
    log = read_log(path, out_dim)
    findings = diagnose(log)
    console.print(heading(log), style="bold", soft_wrap=True)
    for finding in findings:
        console.print()
        console.print(finding.title, style=STYLES[finding.severity], soft_wrap=True)
        first = [f"Try first: {advice}" for advice in finding.advice[:1]]
        for text in (finding.evidence, *first, *(f"Then: {advice}" for advice in finding.advice[1:])):
            console.print(Padding(text, (0, 0, 0, 2), expand=False))
    return int(any(finding.severity == FATAL for finding in findings))


def diagnose(log: TrainingLog) -> list[Finding]:
    """Return all findings, the most severe first."""
    found = [finding for rule in RULES for finding in rule(log)]
    speaks_against = (FATAL,) if log.ours else (FATAL, DOUBTFUL)
    if all(finding.severity not in speaks_against for finding in found):
        found += outcome_rules.nothing_wrong(log)
    order = list(STYLES)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def heading(log: TrainingLog) -> str:
    """Return e.g. outputs/demo/x: finished, step 900 of 900, loss 4.159, ln K 4.159 (K = 64)."""
    loss = log.last.get("loss")
    of = f" of {log.stop_step:,}" if log.stop_step else ""
    parts = [log.state] if log.state else []
    parts.append(f"{log.position(log.last)}{of}, loss {'not finite' if loss is None else f'{loss:.4g}'}")
    if log.ln_k:
        parts.append(
            f"ln K {log.ln_k:.4g} (K = {log.out_dim:,})" + (f": {log.how_known}" if log.how_known else "")
        )
    else:
        parts.append("K unknown: give it as --out-dim K")
    return f"{log.path}: {', '.join(parts)}"
