"""Stopping runs that a launcher has: they save first, and can be resumed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from dino_exp.runs.manifest import Manifest, changing
from launchers import slurm
from launchers.local import LOCAL
from launchers.states import Observer


def stop(folder: Path, names: Collection[str], *, pruned: bool = False) -> tuple[list[str], list[str]]:
    """Stop the active ones of the runs `names`.

    A job is cancelled if no other run needs it.

    Args:
        folder: the sweep's.
        names: names of runs.
        pruned: whether a search stops them because others do better, which their state tells.

    Returns:
        The runs that are being stopped, and the jobs that go on because they also have other runs.

    Raises:
        UserError: SLURM does not answer.
    """
    with changing(folder):
        manifest = Manifest.load(folder)
        active = {run.name: run.entry for run in Observer().observe(manifest) if run.active}
        stopping = {name: entry for name, entry in active.items() if name in names}
        for entry in stopping.values():
            entry.cancelled, entry.pruned = True, pruned or entry.pruned  # which may still be saving
        manifest.save()  # before scancel, so that no job puts itself back into the queue
        jobs = {entry.job for entry in stopping.values() if entry.job and entry.job != LOCAL}
        shared = jobs & {entry.job for entry in active.values() if not entry.cancelled}
        slurm.cancel(sorted(jobs - shared))
    return list(stopping), sorted(shared)
