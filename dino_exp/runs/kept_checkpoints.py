"""Checkpoints that a run keeps by step, `checkpoints/step_500.pt`, beside `last.pt` and `best.pt`.

A kept checkpoint is another name of the `last.pt` of its step, so it costs no second write, and its room on
disk only when `last.pt` is replaced. Imports no torch.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dino_exp.atomic import link_atomically, write_atomically

RULE = re.compile(r"(every|last):([1-9]\d{0,11})")
KEPT = re.compile(r"step_(\d{1,16})\.pt")


@dataclass(frozen=True)
class Keeping:
    """Which checkpoints a run keeps by step."""

    every: int = 0
    """Steps between two of them; 0 keeps none."""
    newest: int | None = None
    """Number of them that stay, the newest; None is all."""

    @classmethod
    def of(cls, rule: str | None, checkpoint_every: int) -> Keeping:
        """Return what `trainer.keep_checkpoints` says: `every:N`, `last:K`, or None for none.

        Raises ValueError, with what would be right, if it says something else.
        """
        if rule is None:
            return cls()
        found = RULE.fullmatch(rule)
        if not found:
            raise ValueError("write every:N (all of each N steps) or last:K (the K newest), e.g. every:500")
        number = int(found[2])
        return cls(number) if found[1] == "every" else cls(checkpoint_every, number)

    def includes(self, step: int) -> bool:
        """Return whether the checkpoint of a step is kept."""
        return self.every > 0 and step % self.every == 0

    def keep(self, last: Path, step: int) -> None:
        """Keep `last.pt`, which is that of `step`, atomically, and remove the oldest that are too many."""
        target = last.with_name(f"step_{step}.pt")
        try:
            link_atomically(last, target)
        except OSError:  # a file system without hard links
            with last.open("rb") as source:
                write_atomically(target, lambda file: shutil.copyfileobj(source, file))
        if self.newest is not None:
            there = kept(last.parent)
            for old in sorted(each for each in there if each <= step)[: -self.newest]:
                there[old].unlink(missing_ok=True)


def kept(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a run's folder `checkpoints` that are kept by step, in order of steps."""
    try:
        paths = list(folder.iterdir())
    except OSError:
        return {}
    found = {int(match[1]): path for path in paths if (match := KEPT.fullmatch(path.name))}
    return dict(sorted(found.items()))
