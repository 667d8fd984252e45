"""The directory of a run, which holds everything about it; each file is either complete or absent.

`config.yaml`, `status.json`, `metrics.jsonl`, `summary.json`, `checkpoints/`, `traceback.txt`, `plots/`.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dino_exp.atomic import naming, write_text_atomically
from dino_exp.errors import UserError
from dino_exp.runs import former_names

FORMAT = 2
"""Version of the files of runs and sweeps; files without a number have version 1. Raise it with every change
that older programs cannot read, such as a new name of a key or metric."""


def to_json(value: Any, **how: Any) -> str:
    """Return strict JSON, with null for NaN and infinities, which JSON cannot express."""
    return json.dumps(_finite(value), allow_nan=False, **how) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def newer_format(content: dict[str, Any]) -> str:
    """Return the problem with a file that a newer version of this program wrote; empty for all others."""
    number = content.get("format", 1)
    if isinstance(number, int) and number <= FORMAT:
        return ""
    return f"format {number} is newer than this program's {FORMAT}; use the version that wrote it"


def refuse_newer(content: dict[str, Any], file: Path) -> None:
    """Raise `UserError` if a newer version of this program wrote the content of a file."""
    problem = newer_format(content)
    if problem:
        raise UserError(f"{file}: {problem}.")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl` in present names; none if the file is missing.

    An incomplete last line, which a kill leaves, is dropped.
    """
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(former_names.TABLE.present_record(json.loads(line)))
        except json.JSONDecodeError:
            break
    return lines


def job_id() -> str | None:
    """Return the id of the SLURM job of this process, as users write it: 12, or 12_3 in an array."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def is_locked(lock: Path) -> bool:
    """Return whether a running process holds a lock file."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def end_of_attempt(status: Mapping[str, Any]) -> float | None:
    """Return when the last attempt ended, or was last alive, by a clock that nobody sets; None if unknown.

    Only the beginning is a time of the day: a heartbeat may be earlier, where the clock was set meanwhile.
    """
    try:
        return status["attempts"][-1]["began"] + status["seconds"]
    except (KeyError, IndexError, TypeError):  # of an earlier version, or not yet begun
        return status.get("heartbeat")


class RunDirectory:
    """The files of one run; at most one process holds a run at a time."""

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
        self.opened = time.time()
        """When this process opened the run, in seconds since 1970."""
        self._opened = time.monotonic()

    @classmethod
    def beside(cls, path: Path) -> RunDirectory:
        """Return the first of `path`, `path`-2, `path`-3, ... that has no run yet."""
        number, candidate = 1, path
        while (candidate / "config.yaml").exists():
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
        return cls(candidate)

    def hold(self) -> None:
        """Hold the run until this process ends.

        Raises:
            UserError: Another process holds it, or a newer version of this program wrote it.
        """
        self.read_status()  # before anything is created
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=5)  # the loader processes of a killed run release it within seconds
        except Timeout:
            status = self.read_status()
            raise UserError(
                f"{self.path}: held by another process (process {status.get('pid')} on "
                f"{status.get('host')}). Wait for it, stop it, or start a new run with resume=never."
            ) from None
        for folder in (self.path, self.checkpoints, self.plots):
            for incomplete in folder.glob(".*.*"):  # temporary files of a process that was killed
                incomplete.unlink()

    def release(self) -> None:
        """Let other processes hold the run."""
        self._lock.release()

    def read_status(self) -> dict[str, Any]:
        """Return the content of `status.json`; empty if the run has not been submitted or started.

        Call it before reading or writing any other file of the run.

        Raises:
            UserError: A newer version of this program wrote it.
        """
        status = json.loads(self.status_file.read_text()) if self.status_file.exists() else {}
        refuse_newer(status, self.status_file)
        return status

    def write_status(self, **changes: Any) -> None:
        """Change fields of `status.json` as the process that holds the run.

        The heartbeat is the time of this call in seconds since 1970; `seconds` have passed since `opened`,
        whatever was done to the clock meanwhile.
        """
        process = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job_id": job_id()}
        times = {"heartbeat": time.time(), "seconds": time.monotonic() - self._opened}
        self._status = (self._status or self.read_status()) | changes | times | process
        self._write_status(self._status)

    def mark(self, **changes: Any) -> None:
        """Change fields of `status.json` while no process holds the run; the heartbeat stays as it is."""
        self._write_status(self.read_status() | changes)

    def _write_status(self, status: dict[str, Any]) -> None:
        write_text_atomically(self.status_file, to_json(status | {"format": FORMAT}, indent=2))

    def is_held(self) -> bool:
        """Return whether a running process holds the run."""
        return is_locked(self.path / ".lock")

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with naming(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(to_json(metrics))

    def flush_metrics(self) -> None:
        """Flush the lines of `metrics.jsonl` to disk, where a checkpoint must not be without them."""
        if self.metrics_file.exists():
            with naming(self.metrics_file), self.metrics_file.open("a") as file:
                os.fsync(file.fileno())

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines after `step`, because a resume logs these steps again."""
        kept = [line for line in read_metrics(self.metrics_file) if line["step"] <= step]
        write_text_atomically(self.metrics_file, "".join(map(to_json, kept)))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        write_text_atomically(self.summary_file, to_json(summary, indent=2))

    def read_summary(self) -> dict[str, Any]:
        """Return the content of `summary.json` in present names; empty if the file is missing."""
        if not self.summary_file.exists():
            return {}
        return former_names.TABLE.present_record(json.loads(self.summary_file.read_text()))

    def write_traceback(self, text: str) -> bool:
        """Write `traceback.txt` unless another process of the run has, and return whether it was written."""
        try:
            with self.traceback_file.open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True


class OthersRunDirectory(RunDirectory):
    """The directory for the other processes of a run, which do not hold it and write only tracebacks."""

    def _ignore(self, *values: Any, **changes: Any) -> None:
        pass

    hold = release = write_status = append_metrics = flush_metrics = rewind_metrics = write_summary = _ignore
