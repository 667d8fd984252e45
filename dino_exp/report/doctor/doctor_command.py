"""`python report.py doctor RUN`: reads a training's log, says what it sees, and what to try first."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from dino_exp.report.doctor.findings import DOUBTFUL, FATAL, RULES, Finding, nothing_wrong
from dino_exp.report.doctor.training_log import TrainingLog, read_log

STYLES = {"fatal": "bold red", "doubtful": "yellow", "remark": "cyan", "good": "green"}
"""By severity, most severe first."""


def doctor(path: Path, out_dim: int | None, console: Console) -> int:
    """Print what is seen in the log of a run directory or file.

    Returns 1 if the training collapsed or diverged, else 0. Raises `UserError` for what is no log.
    """
    log = read_log(path, out_dim)
    findings = diagnose(log)
    console.print(Text(heading(log), style="bold"), soft_wrap=True)
    for finding in findings:
        console.print()
        console.print(Text(finding.title, style=STYLES[finding.severity]), soft_wrap=True)
        console.print(_indented(finding.evidence))
        for number, advice in enumerate(finding.advice):
            text = f"Try first: {advice}" if number == 0 else f"Then: {advice}"
            console.print(_indented(text))
    return int(any(finding.severity == FATAL for finding in findings))


def _indented(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)


def diagnose(log: TrainingLog) -> list[Finding]:
    """All findings, most severe first."""
    found = [finding for rule in RULES for finding in rule(log)]
    speaks_against = (FATAL,) if log.ours else (FATAL, DOUBTFUL)
    if all(finding.severity not in speaks_against for finding in found):
        found += nothing_wrong(log)
    order = list(STYLES)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def heading(log: TrainingLog) -> str:
    """outputs/demo/x: finished, step 900 of 900, loss 4.159, ln K 4.159 (K = 64)"""
    loss = log.last.get("loss")
    of = f" of {log.stop_step:,}" if log.stop_step else ""
    parts = [log.state] if log.state else []
    parts.append(f"{log.unit} {log.last.at:,}{of}, loss {'not finite' if loss is None else f'{loss:.4g}'}")
    if log.ln_k:
        parts.append(
            f"ln K {log.ln_k:.4g} (K = {log.out_dim:,})" + (f": {log.how_known}" if log.how_known else "")
        )
    else:
        parts.append("K unknown: give it as --out-dim K")
    return f"{log.path}: {', '.join(parts)}"
