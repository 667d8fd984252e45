"""States of the runs of a sweep: from their own files first, then from SLURM or the local queue."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dino_exp.atomic import is_locked
from dino_exp.runs.manifest import Entry, Manifest
from dino_exp.runs.run_files import if_readable
from launchers import slurm
from launchers.children import ENDED
from launchers.local import LOCAL, QUEUE_LOCK

SILENT_SECONDS = 120.0
"""Seconds without a heartbeat after which a run may be dead; evaluations and slow file systems take less."""

STATES_BY_JOB_END = {"CANCELLED": "cancelled", "OUT_OF_MEMORY": "failed"}
"""State of a run by the final state of its job; after any other final state the run is lost."""


@dataclass
class RunState:
    """The current state of one run."""

    name: str
    entry: Entry
    state: str
    """The state in status.json; or `cancelled`; `pruned`, by a search; or `lost`: not ended, but no job or
    process has the run."""
    status: Mapping[str, Any] = field(default_factory=dict)
    """The content of status.json."""
    active: bool = False
    """Whether a job, a queue or a process has the run, so that it starts or continues by itself."""
    note: str = ""
    """What is known about its job, for people."""
    problems: list[str] = field(default_factory=list)
    """What is damaged in status.json."""

    @property
    def label(self) -> str:
        """The overrides that set the run apart from the others, or its name if there are none."""
        return " ".join(self.entry.overrides) or self.name

    @property
    def silent_seconds(self) -> float | None:
        """Seconds since the last heartbeat; None for a run that is not running or has had none."""
        if self.state != "running" or "heartbeat" not in self.status:
            return None
        return max(0.0, time.time() - self.status["heartbeat"])


class Observer:
    """A reader of the states of sweeps that can be called often and asks SLURM seldom.

    Args:
        ask_every: Seconds between two calls of squeue.
    """

    def __init__(self, ask_every: float = 30.0) -> None:
        self.ask_every = ask_every
        self._asked = float("-inf")
        self._beats: dict[str, float | None] = {}
        """The heartbeat of each run when SLURM was last asked; clocks of two machines are never compared."""
        self._asked_for: set[str | None] = set()
        self._queue: Mapping[str, str] | None = None
        self._ended: dict[str, str] = {}

    def observe(self, manifest: Manifest) -> list[RunState]:
        """Return the states of all runs, in the order of the manifest."""
        runs = [RunState(name, entry, "pending") for name, entry in manifest.runs.items()]
        unfinished = [run for run in runs if _has_not_ended(run, manifest)]
        local = [run for run in unfinished if run.entry.job == LOCAL]
        submitted = [run for run in unfinished if run.entry.job not in (None, LOCAL)]
        queue_runs = bool(local) and is_locked(manifest.folder / QUEUE_LOCK)
        for run in local:
            held = manifest.directory(run.name).is_held()
            if _has_not_ended(run, manifest):
                _apply_locks(run, queue_runs, held)
        if submitted:
            self._ask_slurm(submitted)
        for run in submitted:
            if _has_not_ended(run, manifest):
                self._apply_slurm(run)
        for run in unfinished:
            if run.entry.job is None:
                run.state, run.note = "lost", "was never submitted"
        for run in unfinished:
            if run.entry.pruned and not run.active and run.state not in ENDED:
                run.state = "pruned"
        for run in runs:
            run.note = " ".join(filter(None, [run.note, *run.problems]))
        return runs

    def _ask_slurm(self, runs: list[RunState]) -> None:
        jobs = {run.entry.job for run in runs}
        if time.monotonic() - self._asked > self.ask_every or not jobs <= self._asked_for:
            self._asked, self._asked_for = time.monotonic(), jobs
            self._beats = {run.name: run.status.get("heartbeat") for run in runs}
            self._queue = slurm.queue()
            if self._queue is not None:
                gone = [run.entry.job for run in runs if run.entry.job and run.entry.job not in self._queue]
                self._ended = slurm.accounting(gone)

    def _apply_slurm(self, run: RunState) -> None:
        """Set the state of a run on SLURM from what squeue and sacct said about its job."""
        job = run.entry.job or ""
        if self._queue is None:
            run.active, run.note = True, "squeue does not answer"
        elif job in self._queue:
            run.active, run.note = True, f"job {self._queue[job].lower()}"
            silent = run.status.get("heartbeat") == self._beats.get(run.name)
            if run.state == "running" and self._queue[job] == "PENDING" and silent:
                run.state = "preempted"  # killed and requeued
        elif run.entry.cancelled or run.state == "cancelled":
            run.state = "cancelled"
        else:
            end = self._ended.get(job)
            run.state = STATES_BY_JOB_END.get(end or "", "preempted" if run.state == "preempted" else "lost")
            run.note = f"job ended as {end}" if end else "the job is gone"


def _has_not_ended(run: RunState, manifest: Manifest) -> bool:
    """Read a run's status, and return whether the run has not ended.

    It is read again after a look at the queue, because the run may have ended and left it in between.
    """
    directory, run.problems = manifest.directory(run.name), []
    run.status = if_readable(lambda: directory.read_status(run.problems), {}, run.problems)
    run.state = run.status.get("state", "pending")
    return run.state not in ENDED


def _apply_locks(run: RunState, queue_runs: bool, held: bool) -> None:
    """Set the state of a local run: it is active while a process holds it, or while it waits in a queue."""
    waits = run.state in ("pending", "running") and queue_runs and not run.entry.cancelled
    run.active = held or waits
    if not run.active and run.entry.cancelled:
        run.state = "cancelled"
    elif not run.active and run.state in ("pending", "running"):
        run.state, run.note = "lost", "" if queue_runs else "the queue is gone"
