"""A run's directory: everything about the run is in it, and every file is whole or absent.

`config.yaml`, `status.json`, `metrics.jsonl`, `summary.json`, `checkpoints/`, `traceback.txt`, `plots/`.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dino_exp.atomic import write_atomically
from dino_exp.errors import UserError
from dino_exp.runs import former_names

FORMAT = 2
"""Version of the files of runs and sweeps; files without a number are of version 1. Raised by every change
that a program of before cannot read, a new name of a key or metric among them."""


def to_json(value: Any, **how: Any) -> str:
    """Strict JSON, with null for NaN and infinities, which it has no word for."""
    return json.dumps(_finite(value), allow_nan=False, **how) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def newer_format(content: dict[str, Any]) -> str:
    """Return what is wrong with a file that a newer version of this program wrote; nothing for all others."""
    number = content.get("format", 1)
    if isinstance(number, int) and number <= FORMAT:
        return ""
    return f"format {number} is newer than this program's {FORMAT}; use the version that wrote it"


def refuse_newer(content: dict[str, Any], file: Path) -> None:
    """Raise `UserError` for the content of a file that a newer version of this program wrote."""
    problem = newer_format(content)
    if problem:
        raise UserError(f"{file}: {problem}.")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl` in present names; none where there is no file.

    A line that a kill cut short is dropped.
    """
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(former_names.TABLE.present_record(json.loads(line)))
        except json.JSONDecodeError:
            break
    return lines


def job_id() -> str | None:
    """SLURM's id of the job that this process belongs to, as users write it: 12, or 12_3 in an array."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def is_locked(lock: Path) -> bool:
    """Whether a living process holds a lock file."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


class RunDirectory:
    """Reads and writes the files of one run; at most one process holds a run at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.status_file = path / "status.json"
        self.metrics_file = path / "metrics.jsonl"
        self.summary_file = path / "summary.json"
        self.traceback_file = path / "traceback.txt"
        self.checkpoints = path / "checkpoints"
        self.plots = path / "plots"
        self._lock = FileLock(path / ".lock")
        self._status: dict[str, Any] = {}

    @classmethod
    def beside(cls, path: Path) -> RunDirectory:
        """The first of `path`, `path`-2, `path`-3, ... that holds no run yet."""
        number, candidate = 1, path
        while (candidate / "config.yaml").exists():
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
        return cls(candidate)

    def hold(self) -> None:
        """Take the run for this process until it ends; a `UserError` if another one has it."""
        self.read_status()  # before the lock's file is made
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=5)  # the loader's processes of a killed run let go within seconds
        except Timeout:
            status = self.read_status()
            raise UserError(
                f"{self.path}: another process is at this run (process {status.get('pid')} on "
                f"{status.get('host')}). Wait for it, stop it, or start a fresh run with resume=never."
            ) from None
        for folder in (self.path, self.checkpoints, self.plots):
            for half_written in folder.glob(".*.*"):  # by a process that was killed
                half_written.unlink()

    def release(self) -> None:
        """Let other processes take the run."""
        self._lock.release()

    def read_status(self) -> dict[str, Any]:
        """Return the content of `status.json`; empty before the first.

        Whoever reads or writes anything of the run comes by here first.

        Raises:
            UserError: a newer version of this program wrote it.
        """
        status = json.loads(self.status_file.read_text()) if self.status_file.exists() else {}
        refuse_newer(status, self.status_file)
        return status

    def write_status(self, **changes: Any) -> None:
        """Change fields of `status.json` as the process that holds the run.

        The heartbeat is the time of this call in seconds since 1970.
        """
        if not self._status:
            self._status = self.read_status()
        self._status |= changes
        self._status |= {
            "heartbeat": time.time(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slurm_job_id": job_id(),
        }
        self._write_status(self._status)

    def mark(self, **changes: Any) -> None:
        """Change fields of `status.json` from outside, while nobody holds the run; no sign of life."""
        self._write_status(self.read_status() | changes)

    def _write_status(self, status: dict[str, Any]) -> None:
        text = to_json(status | {"format": FORMAT}, indent=2)
        write_atomically(self.status_file, lambda file: file.write(text.encode()))

    def is_held(self) -> bool:
        """Whether a living process has the run."""
        return is_locked(self.path / ".lock")

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Add one line to `metrics.jsonl`."""
        with self.metrics_file.open("a") as file:
            file.write(to_json(metrics))

    def rewind_metrics(self, step: int) -> None:
        """Drop what was logged after `step`, because a resume logs it again."""
        kept = [line for line in read_metrics(self.metrics_file) if line["step"] <= step]
        text = "".join(map(to_json, kept))
        write_atomically(self.metrics_file, lambda file: file.write(text.encode()))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        text = to_json(summary, indent=2)
        write_atomically(self.summary_file, lambda file: file.write(text.encode()))

    def read_summary(self) -> dict[str, Any]:
        """Return the content of `summary.json` in present names; empty where there is none."""
        if not self.summary_file.exists():
            return {}
        return former_names.TABLE.present_record(json.loads(self.summary_file.read_text()))

    def write_traceback(self, text: str) -> bool:
        """Write `traceback.txt` unless another process of the run has; whether this one was the first."""
        try:
            with self.traceback_file.open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True


class OthersRunDirectory(RunDirectory):
    """The directory as the processes that do not hold the run have it: read, and a traceback at most."""

    def hold(self) -> None:
        pass

    def release(self) -> None:
        pass

    def write_status(self, **changes: Any) -> None:
        pass

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        pass

    def rewind_metrics(self, step: int) -> None:
        pass

    def write_summary(self, summary: dict[str, Any]) -> None:
        pass
