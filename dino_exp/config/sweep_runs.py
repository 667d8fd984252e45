"""The name of a sweep, its runs, and problems that many of its runs share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig


@dataclass(frozen=True)
class Run:
    """One run of a command line."""

    overrides: tuple[str, ...]
    """The swept overrides with this run's values; empty for a single run."""
    run_id: str
    job: tuple[str, ...]
    """All overrides, as Hydra's sweeper hands them to a launcher."""
    cfg: DictConfig = field(compare=False, repr=False)
    """The checked configuration."""


def sweep_name(
    name: str, swept: Sequence[str], preset: str | None = None, its_keys: Sequence[str] = ()
) -> str:
    """Return a sweep's folder name, made from its keys: demo_sweep_teacher_temp_center_momentum.

    Args:
        name: of the experiment; ignored if experiments are swept.
        swept: the swept keys.
        preset: option of the group `sweep`, which replaces `its_keys`: demo_collapse_study.
        its_keys: the keys that the preset sweeps.
    """
    ends = [key.rpartition(".")[2] for key in dict.fromkeys(swept) if not preset or key not in its_keys]
    prefix = [] if "experiment" in ends else [name]
    return "_".join([*prefix, preset or "sweep", *ends])[:120]


def same_runs(runs: Sequence[Run]) -> list[str]:
    """Return a problem for each run that occurs more than once."""
    by_id: dict[str, list[Run]] = {}
    for run in runs:
        by_id.setdefault(run.run_id, []).append(run)
    return [
        f"{' and '.join(' '.join(run.overrides) for run in same)}: the same training, so they would share "
        "one folder; sweep over keys that change the training, each value once."
        for same in by_id.values()
        if len(same) > 1
    ]


class Findings:
    """The problems or warnings of a sweep's runs: each line once, with the runs it concerns."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[str, ...]]] = {}
        self._runs = 0

    def add(self, lines: Iterable[str], overrides: tuple[str, ...]) -> None:
        """Add a run's lines."""
        self._runs += 1
        for line in lines:
            self._found.setdefault(line, []).append(overrides)

    def lines(self) -> list[str]:
        """Return all lines in the order in which they were added."""
        return [line + self._where(runs) for line, runs in self._found.items()]

    def _where(self, runs: Sequence[tuple[str, ...]]) -> str:
        if len(runs) == self._runs or not runs[0]:
            return ""
        if len(runs) == 1:
            return f" (run {' '.join(runs[0])})"
        return f" ({len(runs)} of {self._runs} runs, first {' '.join(runs[0])})"
