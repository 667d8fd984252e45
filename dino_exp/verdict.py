"""Healthy, slow, collapsed, or diverged: a word for the state of a run, with its evidence in a sentence.

The signal is the mutual information between crop and prototype (see `diagnostics`) as a share of the most it
can be, ln of the smaller of K and the number of crops it is measured on. It is zero when the teacher says the
same of every picture, at whatever entropy; the entropy then names the kind of collapse. The run's last
`WINDOW` logged steps must agree, so that one odd batch decides nothing.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

WINDOW = 3
"""Logged steps that must agree."""
COLLAPSED = 0.004
"""Share of the possible mutual information below which the outputs do not depend on the picture."""
SLOW = 0.02
"""Share below which they hardly do."""
UNIFORM, ONE_HOT = 0.97, 0.1
"""Teacher entropy as a share of ln K that names a collapse."""

WORDS = (
    "warming-up",
    "healthy",
    "slow",
    "collapsed-uniform",
    "collapsed-one-hot",
    "collapsed-constant",
    "diverged",
)


@dataclass(frozen=True)
class Verdict:
    """One of `WORDS`, and why."""

    word: str
    evidence: str

    @property
    def collapsed(self) -> bool:
        """Whether the outputs no longer depend on the picture."""
        return self.word.startswith("collapsed")


class Judge:
    """Keeps the last logged steps of a run and says what they mean.

    Args:
        out_dim: K.
        crops: global crops per step that the mutual information is measured on, 2 · batch size.
        warmup_steps: steps before which no collapse is called.
    """

    def __init__(self, *, out_dim: int, crops: int, warmup_steps: int) -> None:
        self.ceiling = min(1.0, math.log(crops) / math.log(out_dim))
        self.warmup_steps = warmup_steps
        self.recent: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.verdict = Verdict("warming-up", "no step has been logged yet")

    def observe(self, step: int, metrics: dict[str, Any]) -> Verdict:
        """The verdict after a logged step, from its `metrics` by their names in metrics.jsonl."""
        names = ("loss", "grad_norm", "teacher/mutual_information_share", "teacher/entropy_share", "kl_share")
        values = {name: float(metrics[name]) for name in names if metrics[name] is not None}
        self.recent.append(values)
        self.verdict = self._judge(step, values)
        return self.verdict

    def _judge(self, step: int, values: dict[str, float]) -> Verdict:
        odd = [name for name, value in values.items() if not math.isfinite(value)]
        if odd:
            return Verdict(
                "diverged",
                f"{odd[0]} is {values[odd[0]]} at step {step}: lower optimizer.lr, lengthen "
                "optimizer.warmup_epochs, or use trainer.precision=bf16 or fp32 instead of fp16",
            )
        if step < self.warmup_steps or len(self.recent) < WINDOW:
            return Verdict("warming-up", f"no verdict before step {self.warmup_steps}")
        shares = [seen["teacher/mutual_information_share"] / self.ceiling for seen in self.recent]
        h = median(seen["teacher/entropy_share"] for seen in self.recent)
        kl = median(seen["kl_share"] for seen in self.recent)
        facts = (
            f"teacher entropy is {h:.3f} of ln K, KL is {kl:.4f} of ln K, and the mutual information of "
            f"picture and prototype is {median(shares):.4f} of its maximum"
        )
        if max(shares) < COLLAPSED:
            return self._collapse(h, facts)
        if median(shares) < SLOW:
            return Verdict("slow", f"{facts}: the outputs hardly depend on the picture yet")
        return Verdict("healthy", facts)

    @staticmethod
    def _collapse(h: float, facts: str) -> Verdict:
        same = f"{facts}: the outputs no longer depend on the picture"
        if h > UNIFORM:
            return Verdict(
                "collapsed-uniform",
                f"{same}, every prototype is as likely as any other; lower loss.teacher_temp or warm it up "
                "with loss.warmup_teacher_temp_epochs",
            )
        if h < ONE_HOT:
            return Verdict(
                "collapsed-one-hot",
                f"{same}, one prototype takes all; lower loss.center_momentum or raise loss.teacher_temp, "
                "and see that loss.centering is not none",
            )
        return Verdict(
            "collapsed-constant",
            f"{same}, at an entropy between the two textbook pictures; check loss.centering, "
            "loss.sharpening, loss.center_momentum and ema.momentum, and lower optimizer.lr",
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {
            "recent": list(self.recent),
            "word": self.verdict.word,
            "evidence": self.verdict.evidence,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.verdict = Verdict(state["word"], state["evidence"])
