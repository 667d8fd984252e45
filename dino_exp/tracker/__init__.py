"""Mirrors of a run's metrics: Weights & Biases, TensorBoard, or none.

The files in the run directory are the truth. A tracker that fails, stalls or is absent changes nothing about
the training: every call returns at once, raises nothing and holds nothing. What goes wrong is said once, on
the logger `dino_exp.tracker`.
"""

import secrets
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunInfo:
    """What a tracker must know of a run before the first metric."""

    directory: Path
    """The run directory; a tracker's own files lie in a folder of its name inside it."""
    name: str
    """The readable run id that is shown."""
    group: str | None
    """The sweep that the run belongs to, if any."""
    config: dict[str, Any]
    """The resolved config as plain dicts, lists, numbers and strings."""
    tracker_id: str
    """Made once by `new_tracker_id` and kept in the run directory: a resumed run goes on where it was."""
    resume_step: int = 0
    """The optimizer step of the checkpoint to resume from, 0 for a new run; later steps are logged again."""


class Tracker(Protocol):
    """One run at a time: `start`, then `log`, `image` and `alert` in any order, then `finish`, and so again.

    Calls before `start` and after `finish` do nothing. All are to be made by one process (rank 0).
    """

    def start(self, run: RunInfo) -> None:
        """Begin to mirror `run`. Call it before data loading workers are forked."""

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Mirror numbers and short strings (`verdict`) at an optimizer step; values of None are left out."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Mirror the image in `path`, which is read a moment later."""

    def alert(self, title: str, text: str) -> None:
        """Call for attention, where the tracker has a way to."""

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        """End the run with its final results; waits a bounded time for what is still under way.

        `exit_code` is the process's own: anything but 0 shows the run as failed, not finished. A summary with
        `state: preempted` shows it as preempted, where the tracker can.
        """


class NoTracker:
    """Mirrors nothing; metrics.jsonl in the run directory has everything."""

    def start(self, run: RunInfo) -> None:
        pass

    def log(self, metrics: dict[str, Any], step: int) -> None:
        pass

    def image(self, name: str, path: Path, step: int) -> None:
        pass

    def alert(self, title: str, text: str) -> None:
        pass

    def finish(self, summary: dict[str, Any], exit_code: int) -> None:
        pass


def new_tracker_id() -> str:
    """A random id of 12 lower-case letters and digits (62 bits): valid in W&B, and safe in file names."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(12))
