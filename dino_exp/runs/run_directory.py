"""The directory of a run, which holds everything about it; each file is either complete or absent.

`config.yaml`, `data.npz`, `status.json`, `metrics.jsonl`, `summary.json`, `checkpoints/`, `traceback.txt`,
`plots/`.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dino_exp.atomic import flush, is_locked, naming, write_text_atomically
from dino_exp.errors import UserError, refusing
from dino_exp.runs import former_names
from dino_exp.runs.metrics_lines import parse_lines, read_lines
from dino_exp.runs.metrics_lines import read_metrics as read_metrics
from dino_exp.runs.run_files import ENDED_WELL, STATUS, SUMMARY, checked, number, read_object, set_aside

log = logging.getLogger(__name__)

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
    given = content.get("format")
    known = number(given)
    if known is None or known <= FORMAT:  # a word as its number is damage, which the readers name
        return ""
    return f"format {given} is newer than this program's {FORMAT}; use the version that wrote it"


def refuse_newer(content: dict[str, Any], file: Path) -> None:
    """Raise `UserError` if a newer version of this program wrote the content of a file."""
    problem = newer_format(content)
    if problem:
        raise UserError(f"{file}: {problem}.")


def job_id() -> str | None:
    """Return the id of the SLURM job of this process, as users write it: 12, or 12_3 in an array."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def refuse_links(*paths: Path) -> None:
    """Raise `UserError` if a path inside a run or sweep is a link, because others' files may be behind it.

    Call it before writing through the path; reading follows links.
    """
    for path in filter(os.path.islink, paths):
        raise UserError(
            f"{path}: a link to {path.readlink()}; inside runs and sweeps nothing is written "
            "through links. Move the folder itself there, or put the entire run elsewhere."
        )


class HeldError(UserError):
    """Another process holds the run."""


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
        self.data_file = path / "data.npz"
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
        return next(each for each in cls._numbered(path) if not each.config_file.exists())

    @classmethod
    def held_beside(cls, path: Path) -> RunDirectory:
        """Return the first of these that has no run yet and that no other process holds; it is held now."""
        for directory in cls._numbered(path):
            if directory.config_file.exists():
                continue
            try:
                directory.hold(patience=0)
            except HeldError:
                continue
            if not directory.config_file.exists():  # else a run has come and gone since the first look
                return directory
            directory.release()
        raise AssertionError  # numbers do not end

    @classmethod
    def _numbered(cls, path: Path) -> Iterator[RunDirectory]:
        yield cls(path)
        yield from (cls(path.with_name(f"{path.name}-{number}")) for number in itertools.count(2))

    def refuse_others_files(self) -> None:
        """Raise `UserError` if the directory is no run, but has files of names that a run would write."""
        if self.config_file.exists() or self.status_file.exists():
            return
        folders = (self.checkpoints, self.plots)
        files = (self.metrics_file, self.summary_file, self.traceback_file, self.data_file)
        there = [each for each in folders if each.is_dir() and any(each.iterdir())]
        there += [each for each in files if os.path.lexists(each)]
        if there:
            names = ", ".join(each.name for each in there)
            raise UserError(
                f"{self.path}: no run (it has no config.yaml), but it has {names}, which a run would "
                "replace. Choose another directory, or do not set hydra.run.dir."
            )

    def hold(self, patience: float = 5) -> None:
        """Hold the run until this process ends.

        Args:
            patience: seconds to wait for another process; the loader processes of a killed run let go within
                seconds.

        Raises:
            UserError: Another process holds it, a newer version of this program wrote it, or it cannot be
                written.
        """
        self.read_status()  # before anything is created
        trackers = (self.path / "wandb", self.path / "tensorboard")
        refuse_links(Path(self._lock.lock_file), self.checkpoints, self.plots, *trackers)
        with refusing("choose another directory, e.g. with output_root"):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=patience)
            except Timeout:
                status = self.read_status()
                raise HeldError(
                    f"{self.path}: held by another process (process {status.get('pid')} on "
                    f"{status.get('host')}). Wait for it, stop it, or start a new run with resume=never."
                ) from None
            for folder in self.path.absolute().parents[:3]:  # Hydra has created them, and flushes nothing
                flush(folder)

    def release(self) -> None:
        """Let other processes hold the run."""
        self._lock.release()

    def read_status(self, problems: list[str] | None = None) -> dict[str, Any]:
        """Return the content of `status.json`; empty if the run has not been submitted or started.

        Call it before reading or writing any other file of the run. Damaged fields are missing, and
        `problems` gets a line for each; a lost state is that of `summary.json`, if the run has ended.

        Raises:
            UserError: A newer version of this program wrote it, or this user may not read it.
        """
        status = read_object(self.status_file, STATUS, [] if problems is None else problems)
        refuse_newer(status, self.status_file)
        if "state" not in status and (ended := self.read_summary().get("state")) in ENDED_WELL:
            status["state"] = ended
        return status

    def write_status(self, **changes: Any) -> None:
        """Change fields of `status.json` as the process that holds the run.

        The heartbeat is the time of this call in seconds since 1970; `seconds` have passed since `opened`,
        whatever was done to the clock meanwhile.
        """
        process = {"host": socket.gethostname(), "pid": os.getpid(), "slurm_job_id": job_id()}
        times = {"heartbeat": time.time(), "seconds": time.monotonic() - self._opened}
        self._status = (self._status or self._status_to_change()) | changes | times | process
        self._write_status(self._status)

    def mark(self, **changes: Any) -> None:
        """Change fields of `status.json` while no process holds the run; the heartbeat stays as it is."""
        self.refuse_link()
        self._write_status(self._status_to_change() | changes)

    def refuse_link(self) -> None:
        """Raise `UserError` if the directory is a link: what it points to is no part of a sweep's folder."""
        if self.path.is_symlink():
            raise UserError(
                f"{self.path}: a link to {self.path.readlink()}, to which nothing is written from here; "
                "replace it by the folder itself."
            )

    def _status_to_change(self) -> dict[str, Any]:
        """Return what is known of the status; a damaged file is kept under another name."""
        problems: list[str] = []
        status = self.read_status(problems)
        if problems:
            kept = set_aside(self.status_file)
            said = " ".join(problems)
            log.warning("%s: %s It is kept as %s and written anew.", self.path, said, kept.name)
        return status

    def _write_status(self, status: dict[str, Any]) -> None:
        write_text_atomically(self.status_file, to_json(status | {"format": FORMAT}, indent=2))

    def is_held(self) -> bool:
        """Return whether a running process holds the run."""
        return is_locked(Path(self._lock.lock_file))

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with naming(self.metrics_file), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(to_json(metrics))

    def flush_metrics(self) -> None:
        """Flush the lines of `metrics.jsonl` to disk, where a checkpoint must not be without them."""
        if self.metrics_file.exists():
            with naming(self.metrics_file), self.metrics_file.open("ab") as file:
                os.fsync(file.fileno())

    def rewind_metrics(self, step: int, logged: Iterable[dict[str, Any]] = ()) -> list[dict[str, Any]]:
        """Drop the lines after `step`, because a resume logs these steps again, and return the others.

        Args:
            step: The step to go back to.
            logged: The lines up to there, of which those are taken that the file has lost. Its damaged ones
                stay in `metrics.jsonl.damaged`.
        """
        found = read_lines(self.metrics_file)
        copy = parse_lines(to_json(line).encode(errors="replace") for line in logged)
        there, copied = (
            {line["step"]: line for line in lines.records if line["step"] <= step} for lines in (found, copy)
        )
        restored, said = sorted(copied.keys() - there.keys()), []
        if found.broken and step >= 0:
            aside = set_aside(self.metrics_file)
            said.append(f"lines that are damaged: {len(found.broken)}; the file is kept as {aside.name}")
        if restored:
            steps = ", ".join(f"{each:,}" for each in restored[:5]) + ", ..." * (len(restored) > 5)
            said.append(f"lines restored from the checkpoint: {len(restored)} (steps {steps})")
        for first, last in found.gaps():
            if first <= min(last, step) and not any(first <= each <= last for each in restored):
                said.append(f"lines of steps {first:,} to {min(last, step):,} are lost")
        if said:
            log.warning("%s: %s.", self.metrics_file, "; ".join(said))
        lines = there | {each: copied[each] for each in restored}
        kept = [lines[each] for each in sorted(lines)]
        write_text_atomically(self.metrics_file, "".join(map(to_json, kept)))
        return kept

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`; a damaged one is kept under another name."""
        problems: list[str] = []
        self.read_summary(problems)
        if problems:
            set_aside(self.summary_file)
        write_text_atomically(self.summary_file, to_json(summary, indent=2))

    def read_summary(self, problems: list[str] | None = None) -> dict[str, Any]:
        """Return the content of `summary.json` in present names; empty if the run has not ended.

        Damaged fields are missing, and `problems` gets a line for each.
        """
        problems = [] if problems is None else problems
        content = former_names.TABLE.present_record(read_object(self.summary_file, {}, problems))
        return checked(content, SUMMARY, self.summary_file.name, problems)

    def write_traceback(self, text: str) -> bool:
        """Write `traceback.txt` unless another process of the run has, and return whether it was written."""
        try:
            with self.traceback_file.open("x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True


class OthersRunDirectory(RunDirectory):
    """The directory for the other processes of a run, which do not hold it and write only tracebacks."""

    def _ignore(self, *values: Any, **changes: Any) -> None:
        pass

    hold = release = write_status = append_metrics = flush_metrics = write_summary = _ignore
