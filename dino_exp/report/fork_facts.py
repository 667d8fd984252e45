"""What the page of a fork says of its parent."""

from __future__ import annotations

from typing import Any

from dino_exp.config.fork import changes
from dino_exp.config.stored import read_if_possible
from dino_exp.report.run_data import RunData
from dino_exp.report.values import config_text
from dino_exp.training.forks import PARENT


def fork_facts(run: RunData) -> list[tuple[str, str]]:
    """Return the parent, the step, and the keys that were changed, as name and text."""
    parent, _, step = str(run.config.get("fork_parent") or "").rpartition("@")
    if not parent:
        return []
    place = str(run.config.get("fork_from") or "").rpartition("@")[0]
    return [
        ("Fork of", f"{parent} at step {int(step):,}" if step.isdigit() else parent),
        ("Parent's directory", place or "–"),
        ("Changed at the fork", changed(run)),
    ]


def changed(run: RunData) -> str:
    """Return the keys that a fork has changed, in words: loss.teacher_temp 0.04 → 0.03."""
    before = read_if_possible(run.path / PARENT, run.problems)
    if not before:
        return f"not known, as {PARENT} is missing"
    try:
        different: dict[str, Any] = changes(before, run.config)
    except (AttributeError, KeyError, TypeError, ValueError):  # of another version, or incomplete
        return f"not known, as {PARENT} is not complete"
    pairs = [f"{key} {config_text(there)} → {config_text(here)}" for key, (there, here) in different.items()]
    return "; ".join(pairs) or "nothing"
