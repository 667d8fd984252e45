"""Runs as child processes, each with its share of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dino_exp.errors import USER_ERROR, UserError, in_words
from dino_exp.installation import CHECKOUT, ROOT
from dino_exp.parallel.processes import SHARED_BATCHES, STOPPING, stop_signals
from dino_exp.runs.run_directory import RunDirectory

ENDED = ("finished", "collapsed", "failed")
"""States after which no job trains a run any further."""


def open_log(log: Path) -> IO[bytes]:
    """Open a log to append to it, but never what a link points to.

    Raises:
        UserError: It cannot be written.
    """
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        return os.fdopen(os.open(log, flags, 0o666), "ab")
    except OSError as error:
        reason = "a link, to which nothing is written" if log.is_symlink() else in_words(error)
        raise UserError(f"{log}: {reason}.") from None


def log_event(log: Path, text: str) -> None:
    """Append a line to a log, with the time; a full disk ends no run."""
    with suppress(OSError), open_log(log) as file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode(errors="surrogateescape"))


def python_path() -> dict[str, str]:
    """Return the environment variables with which a process in any folder imports this copy of the code.

    An installed project needs no path. PYTHONSAFEPATH makes Python 3.11 and later ignore the working
    directory, which may hold another checkout.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, paths))} if CHECKOUT else {}
    return {**path, "PYTHONSAFEPATH": "1"}


def sharing_batches(runs: int) -> dict[str, str]:
    """Return the variable by which runs that train at one time on this machine share their batches."""
    return {SHARED_BATCHES: os.environ.get(SHARED_BATCHES, "/dev/shm")} if runs > 1 else {}


@dataclass
class Child:
    """One process of a run."""

    directory: RunDirectory
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(
        cls,
        directory: RunDirectory,
        environment: Mapping[str, str],
        *,
        share: int = 1,
        rank: int = 0,
        cores: set[int] | None = None,
        plugins: Mapping[str, str] | None = None,
    ) -> Child:
        """Start `launchers.training_process` for a run.

        Args:
            directory: The run's directory.
            environment: Variables to add to those of this process.
            share: Number of runs on the same GPU.
            rank: Rank of the process within the run; each rank has its own log.
            plugins: Modules that it imports because the user has named them, with the folder of each.
            cores: CPU cores that the process may use; None for all that this process may use.

        Raises:
            UserError: The directory or its log is a link, or cannot be written.
        """
        directory.refuse_link()
        log = directory.path / ("log.txt" if rank == 0 else f"log.{rank}.txt")
        log_event(log, f"starting on {os.uname().nodename}")
        with open_log(log) as output:
            command = ["-u", "-m", "launchers.training_process", str(directory.path), "--share", str(share)]
            command += [word for pair in (plugins or {}).items() for word in ("--plugin", *pair)]
            process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **python_path(), **environment},
            )
        if cores:
            os.sched_setaffinity(process.pid, cores)
        return cls(directory, process, log)

    def send(self, number: int) -> None:
        """Send a signal; a stop signal makes the run save and stop at its next step."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    @property
    def ended(self) -> bool:
        """Whether the process has exited."""
        return self.process.poll() is not None

    @property
    def stopped(self) -> bool:
        """Whether the process ended because of a stop signal, so that the run can be resumed.

        A run that has saved exits with 128 + the signal; one that has no handler yet is killed by the signal.
        """
        code = self.process.returncode
        return -code in STOPPING or code - 128 in STOPPING

    def record_exit(self) -> int:
        """Record how the process ended where it could not do so itself, and return its exit code (>= 0).

        A process that the system kills records nothing, and neither does one that fails before it has
        opened its run.
        """
        code = self.process.returncode
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        log_event(self.log, f"ended: {how}")
        if code == 0:
            return 0
        state = self.directory.read_status().get("state")
        if self.stopped:
            if state == "running" and not self.directory.is_held():
                self.directory.mark(state="preempted")
            return 128 + abs(code) % 128
        if self.directory.is_held() and code == USER_ERROR:
            return code  # another process holds the run
        if code < 0:
            out_of_memory = ", usually because memory ran out" if code == -signal.SIGKILL else ""
            with open_log(self.directory.traceback_file) as file:
                file.write(f"{self.log.name}: {how}{out_of_memory}\n".encode())
        elif state not in ENDED:
            self.directory.write_traceback(f"{how}; {self.log.name} ends with:\n{tail(self.log, 20)}\n")
        if state not in ENDED and not self.directory.is_held():
            self.directory.mark(state="failed")
        return code if code > 0 else 128 - code


def tail(log: Path, lines: int) -> str:
    """Return the last lines of a log, without text that a live display has overwritten."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 200 * lines - 2000))
        text = file.read().decode(errors="replace")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.rstrip("\n").split("\n")[-lines:])


class StopSignals:
    """Context in which stop signals are forwarded to all children, also to those started later."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._forward) for number in stop_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def add(self, child: Child) -> Child:
        """Add a child that was just started, and return it."""
        self.children.append(child)
        if self.signal is not None:
            child.send(self.signal)
        return child

    def _forward(self, number: int, frame: object) -> None:
        self.signal = self.signal or number
        for child in self.children:
            child.send(number)
