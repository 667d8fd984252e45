"""Healthy, slow, collapsed, or diverged: a word for the state of a run, with its evidence in a sentence.

The signal is the mutual information between crop and prototype (see `diagnostics`) as a share of the most it
can be, ln of the smaller of K and the number of crops it is measured on. It is zero when a network says the
same of every image, at whatever entropy; the entropy then names the kind of collapse. Zero is meant: runs
have come back from a thousandth of the maximum and learned. For a healthy run the student must know the
image too, because a very low τ_t turns a teacher's last differences, mere noise, into information.
`docs/collapse.md` has how often this was right.

Outputs that are the same now may differ again. A slow center lags behind the logits, which one prototype then
wins for every image until the center has caught up. So a collapse is called when that has lasted.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

from dino_exp.metrics import DIVERGENCE, ENTROPY, GRAD_NORM, INFORMATION, LOSS

WINDOW = 3
"""Logged steps that must agree, so that one odd batch decides nothing."""
ALIKE = 3e-4
"""Share of the possible mutual information below which the teacher's outputs do not depend on the image."""
SLOW = 0.012
"""Share below which the teacher's or the student's hardly do."""
LASTING_STEPS = 50
"""Steps that this must last at least before it is a collapse."""
CATCHING_UP = 3.0
"""Time constants 1 / (1 − m) in which a center has covered 95 % of the way, and that are waited for."""
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


def most_information(out_dim: int, crops: int) -> float:
    """The largest mutual information that so many crops can show, as a share of ln K."""
    return min(1.0, math.log(crops) / math.log(out_dim))


@dataclass(frozen=True)
class Verdict:
    """One of `WORDS`, and why."""

    word: str
    evidence: str

    @property
    def collapsed(self) -> bool:
        """Whether the outputs no longer depend on the image."""
        return self.word.startswith("collapsed")


class Judge:
    """Keeps the last logged steps of a run and says what they mean.

    Args:
        out_dim: K.
        crops: global crops per step that the mutual information is measured on, 2 · batch size.
        warmup_steps: steps before which no collapse is called.
        total_steps: of the run.
        center_momentum: m; 0 where there is no center.
    """

    def __init__(
        self, *, out_dim: int, crops: int, warmup_steps: int, total_steps: int, center_momentum: float
    ) -> None:
        self.ceiling = most_information(out_dim, crops)
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.catching_up = CATCHING_UP / (1 - center_momentum)
        self.recent: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.alike_since: int | None = None
        """Step since which the outputs have been the same for every image."""
        self.recovered_at: int | None = None
        """Step at which a collapse that had been called ended."""
        self.verdict = Verdict("warming-up", "no step has been logged yet")

    def observe(self, step: int, metrics: dict[str, Any]) -> Verdict:
        """The verdict after a logged step, from its `metrics` by their names in metrics.jsonl."""
        names = (*(row.key for row in (LOSS, GRAD_NORM, ENTROPY, DIVERGENCE)), *INFORMATION.keys)
        values = {name: float(metrics[name]) for name in names if metrics.get(name) is not None}
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
        self._note_outputs(step)
        if step < self.warmup_steps or len(self.recent) < WINDOW:
            return Verdict("warming-up", f"no verdict before step {self.warmup_steps}")
        teacher, student = (self._typical(name) / self.ceiling for name in INFORMATION.keys)
        h = self._typical(ENTROPY.key)
        facts = (
            f"teacher entropy is {h:.3f} of ln K, KL is {self._typical(DIVERGENCE.key):.4f} of ln K, and the "
            f"mutual information of image and prototype is {teacher:.2g} of its maximum in the teacher and "
            f"{student:.2g} in the student"
        )
        if self.recovered_at:
            facts += f" (until step {self.recovered_at} the run was collapsed)"
        if self.alike_since is not None:
            due = self._due(self.alike_since)
            facts += f": since step {self.alike_since} the outputs do not depend on the image"
            if step >= due and all(self._alike(seen) for seen in self.recent):
                return self._collapse(h, facts)
            until = max(due, self.warmup_steps)
            return Verdict("slow", f"{facts}, which is a collapse if it lasts until step {until}")
        if min(teacher, student) < SLOW:
            return Verdict("slow", f"{facts}: the outputs hardly depend on the image yet")
        return Verdict("healthy", facts)

    def _note_outputs(self, step: int) -> None:
        if not self._alike(self.recent[-1]):
            if self.verdict.collapsed:
                self.recovered_at = step
            self.alike_since = None
        elif self.alike_since is None:
            self.alike_since = step

    def _alike(self, seen: dict[str, float]) -> bool:
        return seen[INFORMATION.key] / self.ceiling < ALIKE

    def _due(self, since: int) -> int:
        """Step from which outputs that are alike since a step are a collapse.

        A slow center is waited for where it can still catch up within the run.
        """
        patience = self.catching_up if since + self.catching_up <= self.total_steps else 0
        return since + max(LASTING_STEPS, round(patience))

    def _typical(self, name: str) -> float:
        return median(seen[name] for seen in self.recent)

    @staticmethod
    def _collapse(h: float, facts: str) -> Verdict:
        if h > UNIFORM:
            return Verdict(
                "collapsed-uniform",
                f"{facts}, every prototype is as likely as any other; lower loss.teacher_temp or warm it up "
                "with loss.warmup_teacher_temp_epochs",
            )
        if h < ONE_HOT:
            return Verdict(
                "collapsed-one-hot",
                f"{facts}, one prototype takes all; lower loss.center_momentum or raise loss.teacher_temp, "
                "and see that loss.centering is not none",
            )
        return Verdict(
            "collapsed-constant",
            f"{facts}, at an entropy between the two textbook images; check loss.centering, "
            "loss.sharpening, loss.center_momentum and ema.momentum, and lower optimizer.lr",
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {
            "recent": list(self.recent),
            "alike_since": self.alike_since,
            "recovered_at": self.recovered_at,
            "word": self.verdict.word,
            "evidence": self.verdict.evidence,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.alike_since, self.recovered_at = state.get("alike_since"), state.get("recovered_at")
        self.verdict = Verdict(state["word"], state["evidence"])
