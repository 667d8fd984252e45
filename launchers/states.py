"""What has become of each run of a sweep: from its own files first, then from whoever has its job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dino_exp.runs.manifest import Entry, Manifest
from dino_exp.runs.run_directory import is_locked
from launchers import slurm
from launchers.children import ENDED
from launchers.local import LOCAL, QUEUE_LOCK

SILENT_SECONDS = 120.0
"""Without a heartbeat for so long, a run may be dead; evaluations and slow file systems are shorter."""

ENDS = {"CANCELLED": "cancelled", "OUT_OF_MEMORY": "failed"}
"""What SLURM's word for the end of a job means for its run; after any other end the run is lost."""


@dataclass
class RunState:
    """One run as it stands."""

    name: str
    entry: Entry
    state: str
    """That of status.json, or `cancelled`, or `lost`: begun or submitted, and nobody has it any more."""
    status: Mapping[str, Any] = field(default_factory=dict)
    """The content of status.json."""
    in_hand: bool = False
    """Whether a job or a queue has it, so that it will go on by itself."""
    note: str = ""
    """What SLURM says, where it matters."""

    @property
    def silent_seconds(self) -> float | None:
        """Since its last sign of life, for a run that should be showing some."""
        if self.state != "running" or "heartbeat" not in self.status:
            return None
        return max(0.0, time.time() - self.status["heartbeat"])


class Observer:
    """Looks at a sweep again and again, and asks SLURM seldom.

    Args:
        ask_every: seconds between two questions.
    """

    def __init__(self, ask_every: float = 30.0) -> None:
        self.ask_every = ask_every
        self._asked = float("-inf")
        self._asked_at = 0.0
        self._asked_for: set[str | None] = set()
        self._queue: Mapping[str, str] | None = None
        self._ended: dict[str, str] = {}

    def observe(self, manifest: Manifest) -> list[RunState]:
        """All runs in the manifest's order."""
        runs = []
        for name, entry in manifest.runs.items():
            status = manifest.directory(name).read_status()
            runs.append(RunState(name, entry, status.get("state", "pending"), status))
        local = [run for run in runs if run.state not in ENDED and run.entry.job == LOCAL]
        submitted = [run for run in runs if run.state not in ENDED and run.entry.job not in (None, LOCAL)]
        if local:
            queue_lives = is_locked(manifest.folder / QUEUE_LOCK)
            for run in local:
                held = manifest.directory(run.name).is_held()
                if _not_done(run, manifest):
                    _judge_local(run, queue_lives, held)
        if submitted:
            self._ask_slurm(submitted)
            for run in submitted:
                if _not_done(run, manifest):
                    self._judge_submitted(run)
        for run in runs:
            if run.entry.job is None and run.state not in ENDED:
                run.state, run.note = "lost", "was never submitted"
        return runs

    def _ask_slurm(self, runs: list[RunState]) -> None:
        jobs = {run.entry.job for run in runs}
        if time.monotonic() - self._asked > self.ask_every or not jobs <= self._asked_for:
            self._asked, self._asked_at, self._asked_for = time.monotonic(), time.time(), jobs
            self._queue = slurm.queue()
            if self._queue is not None:
                gone = [run.entry.job for run in runs if run.entry.job and run.entry.job not in self._queue]
                self._ended = slurm.accounting(gone)

    def _judge_submitted(self, run: RunState) -> None:
        job = run.entry.job or ""
        if self._queue is None:
            run.in_hand, run.note = True, "squeue does not answer"
        elif job in self._queue:
            run.in_hand, run.note = True, f"job {self._queue[job].lower()}"
            silent_since = run.status.get("heartbeat", 0.0)
            if run.state == "running" and self._queue[job] == "PENDING" and silent_since < self._asked_at:
                run.state = "preempted"  # killed, and put back
        elif run.entry.cancelled or run.state == "cancelled":
            run.state = "cancelled"
        else:
            end = self._ended.get(job)
            run.state = ENDS.get(end or "", "preempted" if run.state == "preempted" else "lost")
            run.note = f"job ended as {end}" if end else "the job is gone"


def _not_done(run: RunState, manifest: Manifest) -> bool:
    """Whether a run has not ended, by what it says now.

    It may have ended, and left its job or queue, after it was looked at and before these were.
    """
    run.status = manifest.directory(run.name).read_status()
    run.state = run.status.get("state", "pending")
    return run.state not in ENDED


def _judge_local(run: RunState, queue_lives: bool, held: bool) -> None:
    """A run lives while a process holds it; one that waits, while there is a queue."""
    waits = run.state in ("pending", "running") and queue_lives and not run.entry.cancelled
    run.in_hand = held or waits
    if not run.in_hand and run.entry.cancelled:
        run.state = "cancelled"
    elif not run.in_hand and run.state in ("pending", "running"):
        run.state, run.note = "lost", "the queue is gone" if not queue_lives else ""
