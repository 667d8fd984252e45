"""Mirrors of a run's metrics: Weights & Biases, TensorBoard, or none.

The files in the run directory are the truth. A tracker that fails, stalls or is absent changes nothing about
the training: every call returns at once and raises nothing. Each problem is logged once, by the logger
`dino_exp.tracker`.
"""

import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunInfo:
    """What a tracker must know about a run before the first metric."""

    directory: Path
    """The run directory; a tracker's files are in a folder with the tracker's name inside it."""
    name: str
    """The readable run id."""
    group: str | None
    """The sweep that the run belongs to, if any."""
    config: dict[str, Any]
    """The resolved config as plain dicts, lists, numbers and strings."""
    tracker_id: str
    """Created once by `new_tracker_id` and kept in status.json; a resumed run continues under it."""
    resume_step: int = 0
    """Optimizer step of the checkpoint to resume from, 0 for a new run; later steps are logged again."""


class Tracker:
    """Mirror of one run after another: `start`, then `log`, `image` and `alert` in any order, then `finish`.

    Calls before `start` and after `finish` do nothing. Only rank 0 makes calls.
    """

    def start(self, run: RunInfo) -> None:
        """Start to mirror `run`. Call it before data loading workers are forked."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Mirror numbers and short strings (`verdict`) of an optimizer step; values of None are skipped."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Mirror the image file `path`, which is read shortly after."""

    def alert(self, title: str, text: str) -> None:
        """Notify the user, if the tracker supports it."""

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """End the run with its final results; wait a limited time for what is not yet written.

        `exit_code` is the process's: with anything but 0 the run is shown as failed, not finished. With
        `state: preempted` in the summary it is shown as preempted, if the tracker supports it.
        """


class NoTracker(Tracker):
    """Tracker that does nothing; metrics.jsonl in the run directory has everything."""


def tracker_id_of(folder: Path, status: Mapping[str, Any]) -> str:
    """Return the tracker id of a run: from its status, or else from its W&B files, or a new one."""
    known = status.get("tracker_id")
    # wandb/run-20260101_120000-ID, or offline-run-...
    folders = sorted((folder / "wandb").glob("*run-*-*"), key=lambda path: path.name.partition("run-")[2])
    return known or (folders[-1].name.rpartition("-")[2] if folders else new_tracker_id())


def new_tracker_id() -> str:
    """Return a random id of 12 lower-case letters and digits (62 bits), valid in W&B and in file names."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(12))
