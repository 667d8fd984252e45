"""The verdict on a run: healthy, slow, collapsed or diverged, with the evidence in a sentence.

The signal is the mutual information between crop and prototype (see `diagnostics`) as a share of its maximum,
ln of the smaller of K and the number of crops. It is zero when a network's output is the same for every
image, at any entropy; the entropy then names the kind of collapse. The threshold is close to zero, because
runs have recovered from a thousandth of the maximum and learned. In a healthy run the student must have
mutual information too, because a very low τ_t turns noise in the teacher's outputs into information.
`docs/collapse.md` shows how often the verdict was right.

Outputs that are equal now may differ again. A slow center lags behind the logits, and one prototype then wins
for every image until the center has caught up. So a collapse is called only when it has lasted.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

from dino_exp.metrics import DIVERGENCE, ENTROPY, GRAD_NORM, INFORMATION, LOSS

WINDOW = 3
"""Number of logged steps that must agree, so that one odd batch decides nothing."""
ALIKE = 3e-4
"""Share of the maximal mutual information below which the teacher's outputs do not depend on the image."""
SLOW = 0.012
"""Share below which the teacher's or the student's outputs hardly depend on the image."""
LASTING_STEPS = 50
"""Minimal number of steps with equal outputs before they are called a collapse."""
CATCHING_UP = 3.0
"""Time constants 1 / (1 − m) to wait for the center, which then has covered 95 % of the way."""
SETTLED_SHARE, SETTLED_STEPS = 0.2, 100
"""Share of the run, and number of steps, in which a run is healthy without a break before that is settled."""
UNIFORM, ONE_HOT = 0.97, 0.1
"""Teacher entropy as a share of ln K: above the first a collapse is uniform, below the second one-hot."""

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
    """Return the largest mutual information that can be measured on so many crops, as a share of ln K."""
    return min(1.0, math.log(crops) / math.log(out_dim))


@dataclass(frozen=True)
class Verdict:
    """One of `WORDS`, and the evidence for it."""

    word: str
    evidence: str

    @property
    def collapsed(self) -> bool:
        """Return whether the outputs no longer depend on the image."""
        return self.word.startswith("collapsed")


class Judge:
    """Judge of a run, from its last logged steps.

    Args:
        out_dim: K.
        crops: number of global crops per step, on which the mutual information is measured: 2 · batch size.
        warmup_steps: number of steps before which no collapse is called.
        total_steps: number of steps of the run.
        center_momentum: m; 0 without a center.
        last_warmup_step: step at which the temperature's warm-up is over too; health does not settle before.
    """

    def __init__(
        self,
        *,
        out_dim: int,
        crops: int,
        warmup_steps: int,
        total_steps: int,
        center_momentum: float,
        last_warmup_step: int = 0,
    ) -> None:
        self.ceiling = most_information(out_dim, crops)
        self.warmup_steps, self.total_steps = warmup_steps, total_steps
        self.last_warmup_step = max(last_warmup_step, warmup_steps)
        self.catching_up = CATCHING_UP / (1 - center_momentum)
        self.recent: deque[dict[str, float]] = deque(maxlen=WINDOW)
        self.alike_since: int | None = None
        """Step since which the outputs have been equal for all images."""
        self.recovered_at: int | None = None
        """Step at which the run recovered from a collapse."""
        self.healthy_since: int | None = None
        """Step since which, after the warm-ups, every verdict has been healthy."""
        self.settled = False
        """Whether the run is healthy for so long that it counts as one that trains; it may collapse later."""
        self.verdict = Verdict("warming-up", "no step has been logged yet")

    def observe(self, step: int, metrics: dict[str, Any]) -> Verdict:
        """Return the verdict after a logged step, from its metrics by their names in metrics.jsonl."""
        names = (*(row.key for row in (LOSS, GRAD_NORM, ENTROPY, DIVERGENCE)), *INFORMATION.keys)
        values = {name: float(metrics[name]) for name in names if metrics.get(name) is not None}
        self.recent.append(values)
        self.verdict = self._judge(step, values)
        if self.verdict.word != "healthy" or step < self.last_warmup_step:
            self.healthy_since = None
        elif self.healthy_since is None:
            self.healthy_since = step
        self.settled = self.healthy_since is not None and step >= self._settles(self.healthy_since)
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
        """Return the step at which outputs that are equal since step `since` become a collapse.

        Includes the time for a slow center to catch up, if that is possible within the run.
        """
        patience = self.catching_up if since + self.catching_up <= self.total_steps else 0
        return since + max(LASTING_STEPS, round(patience))

    def _settles(self, since: int) -> int:
        """Return the step at which a run that is healthy since step `since` counts as one that trains.

        A slow center, with which a collapse comes late, may need more steps than the run has left.
        """
        return since + round(max(SETTLED_STEPS, SETTLED_SHARE * self.total_steps, self.catching_up))

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
                "and check that loss.centering is not none",
            )
        return Verdict(
            "collapsed-constant",
            f"{facts}, at an entropy between uniform and one-hot; check loss.centering, "
            "loss.sharpening, loss.center_momentum and ema.momentum, and lower optimizer.lr",
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps."""
        return {
            "recent": list(self.recent),
            "alike_since": self.alike_since,
            "recovered_at": self.recovered_at,
            "healthy_since": self.healthy_since,
            "settled": self.settled,
            "word": self.verdict.word,
            "evidence": self.verdict.evidence,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self.recent = deque(state["recent"], maxlen=WINDOW)
        self.alike_since, self.recovered_at = state.get("alike_since"), state.get("recovered_at")
        self.healthy_since, self.settled = state.get("healthy_since"), state.get("settled", False)
        self.verdict = Verdict(state["word"], state["evidence"])
