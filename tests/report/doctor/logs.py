"""Logs of real and invented trainings, and what the doctor says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from dino_exp.console import Console
from dino_exp.report.doctor.doctor_command import diagnose, doctor
from dino_exp.report.doctor.finding import Finding
from dino_exp.report.doctor.training_log import read_log
from tests.report.synthetic import changed, write_json, write_lines

DATA = Path(__file__).parents[1] / "data"
"""Lines of real runs on the shapes, 900 steps each: one healthy, five with a bad setting."""
LN_K = math.log(65_536)
HEALTHY = "Healthy: the outputs depend on the image"
NO_COLLAPSE = "No sign of collapse in the loss"


def seen(path: Path, out_dim: int | None = None) -> tuple[int, str]:
    """Run the doctor, and return its exit code and text."""
    text = StringIO()
    code = doctor(path, out_dim, Console(file=text, width=400))
    return code, text.getvalue()


def findings(path: Path, out_dim: int | None = None) -> list[Finding]:
    """Return all findings of a run or log."""
    return diagnose(read_log(path, out_dim))


def titles(path: Path, out_dim: int | None = None) -> list[str]:
    """Return the titles of all findings."""
    return [each.title for each in findings(path, out_dim)]


def finding(path: Path, title: str, out_dim: int | None = None) -> Finding:
    """Return the finding whose title begins with `title`; there must be one."""
    return next(each for each in findings(path, out_dim) if each.title.startswith(title))


def by_epoch(path: Path, losses: Sequence[float], **more: Any) -> Path:
    """Write a log as the released code does."""
    common = {"train_lr": 1e-4, **more}
    write_lines(path, [{"train_loss": loss, "epoch": epoch, **common} for epoch, loss in enumerate(losses)])
    return path


def ours(
    path: Path,
    settings: Mapping[str, Any] = MappingProxyType({}),
    each: Callable[[int], dict[str, Any]] = lambda index: {},
    count: int = 40,
    steps: int = 6 * 375,
) -> Path:
    """Write a healthy run of a number of steps with some settings and lines changed."""
    config = yaml.safe_load((DATA / "healthy" / "config.yaml").read_text())
    config = changed(config, {"trainer.max_steps": None, **settings})
    write_json(path / "config.yaml", config)
    set_state(path, state="finished", total_steps=steps)
    common = {"grad_norm": 1.0, "ln_k": math.log(config["head"]["out_dim"]), "verdict": "healthy"}
    lines = [
        {"step": (index + 1) * steps // count, "loss": 4.1 - 0.05 * index, **common, **each(index)}
        for index in range(count)
    ]
    write_lines(path / "metrics.jsonl", lines)
    return path


def judged(path: Path, word: str, settings: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> Path:
    """Write a run of which all lines have a verdict."""
    return ours(path, settings, lambda index: {"verdict": word}, **more)


def set_state(run: Path, **status: Any) -> None:
    """Write the status of a run."""
    write_json(run / "status.json", status)
