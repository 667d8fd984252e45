"""A run and a sweep, as far as their files can be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_exp.metrics import DIVERGENCE, ENTROPY, INFORMATION, KNN, LN_K, UNTRAINED_KNN
from dino_exp.report.evaluation_records import Result
from dino_exp.report.values import Value, value_text
from dino_exp.runs.run_files import number

SEED = "trainer.seed"
UNFINISHED = ("running", "pending", "preempted")


@dataclass
class RunData:
    """One run."""

    path: Path
    state: str = "unknown"
    """The state in status.json; or lost, or pending, where no process holds the run."""
    note: str = ""
    """A remark on the state."""
    overrides: list[str] = field(default_factory=list)
    """The overrides of the sweep's manifest."""
    values: dict[str, Value] = field(default_factory=dict)
    """Its value on each axis of the sweep."""
    config: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Records of metrics.jsonl in the order of steps; in a sweep, a sample of them."""
    evaluations: list[Result] = field(default_factory=list)
    """Results of `evaluate.py`, oldest first."""
    problems: list[str] = field(default_factory=list)
    """What is missing or broken, in sentences."""
    last_lines: str = ""
    """The last lines of the traceback or log of a failed or lost run."""

    @property
    def name(self) -> str:
        """The run id."""
        return self.path.name

    @property
    def label(self) -> str:
        """Its values on the sweep's axes, or its overrides, or its name."""
        swept = [f"{key}={value_text(value)}" for key, value in self.values.items()] or self.overrides
        return " ".join(swept) or self.name

    @property
    def verdict(self) -> str:
        """One of `dino_exp.dino.verdict.WORDS` or a word of another version; empty without a verdict."""
        seen = (record.get("verdict") for record in reversed(self.metrics))
        return str(next(filter(None, (self.summary.get("verdict"), *seen)), ""))

    @property
    def outcome(self) -> str:
        """The verdict if the run ended with one, else the state; both while the run is not finished."""
        ended_badly = self.state in ("failed", "lost", "cancelled") and self.verdict != "diverged"
        if ended_badly or not self.verdict:
            return self.state
        so_far = self.state in (*UNFINISHED, "pruned")
        return f"{self.state}: {self.verdict}" if so_far else self.verdict

    @property
    def evidence(self) -> str:
        """The evidence for the verdict; for a run without a summary, from its last metrics."""
        if self.summary.get("evidence"):
            return str(self.summary["evidence"])
        shares = {row.words: self.last(row.key) for row in (ENTROPY, DIVERGENCE, INFORMATION)}
        known = [f"{name} is {share:.3f} of ln K" for name, share in shares.items() if share is not None]
        return f"at step {self.metrics[-1]['step']:,}, {', '.join(known)}" if known and self.metrics else ""

    @property
    def step(self) -> int | None:
        """The last step that any file mentions."""
        steps = [number(self.status.get("step")), number(self.summary.get("steps"))]
        steps += [number(record["step"]) for record in self.metrics[-1:]]
        known = [step for step in steps if step is not None]
        return int(max(known)) if known else None

    @property
    def total_steps(self) -> int | None:
        """The step at which the run ends."""
        total = number(self.status.get("total_steps"))
        return None if total is None else int(total)

    @property
    def ln_k(self) -> float | None:
        """The loss of a uniform collapse."""
        return self.last(LN_K.key)

    @property
    def knn(self) -> float | None:
        """k-NN top-1 of the trained teacher in percent; None if it was never measured."""
        if KNN.key in self.summary:
            return number(self.summary[KNN.key])
        trained = [value for step, value in self.series(KNN.key) if step > 0 and value is not None]
        return trained[-1] if trained else None

    @property
    def untrained_knn(self) -> float | None:
        """k-NN top-1 of the untrained network in percent; None for a run with `init_from`."""
        if self.config.get("init_from"):
            return None
        known = number(self.summary.get(UNTRAINED_KNN.key))
        at_start = (value for step, value in self.series(KNN.key) if step == 0)
        return next(at_start, None) if known is None else known

    def last(self, key: str) -> float | None:
        """Return the last known value of a metric."""
        final = self.summary.get("final")
        known = number(self.summary.get(key))
        if known is None and isinstance(final, dict):
            known = number(final.get(key))
        if known is None and not (isinstance(final, dict) and key in final):
            values = (number(record[key]) for record in reversed(self.metrics) if key in record)
            known = next((value for value in values if value is not None), None)
        return known

    def series(self, key: str) -> list[tuple[int, float | None]]:
        """Return step and value wherever a metric was logged; None for values that are not finite."""
        return [(int(record["step"]), number(record[key])) for record in self.metrics if key in record]


@dataclass
class SweepData:
    """The runs of a folder, and the axes of the sweep."""

    path: Path
    runs: list[RunData] = field(default_factory=list)
    axes: dict[str, list[Value]] = field(default_factory=dict)
    """Swept keys and their values: numbers in order, then words."""
    tied_keys: dict[str, list[str]] = field(default_factory=dict)
    """Further keys that always change together with an axis, by axis."""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name
