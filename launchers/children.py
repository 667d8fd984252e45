"""Runs as child processes: started with their share of the machine, watched, told to stop, and seen off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_exp.installation import CHECKOUT, ROOT
from dino_exp.runs.run_directory import RunDirectory

ENDED = ("finished", "collapsed", "failed")
USER_ERROR = 2


def say(log: Path, text: str) -> None:
    """Add a line to a log, with the time."""
    with log.open("a") as file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def project() -> dict[str, str]:
    """Return the variables with which other processes, started in any folder, run the code that runs here.

    An installed project is found without a path. PYTHONSAFEPATH has Python 3.11 and later ignore the working
    directory, which may hold another checkout.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    place = {"PYTHONPATH": os.pathsep.join(filter(None, paths))} if CHECKOUT else {}
    return {**place, "PYTHONSAFEPATH": "1"}


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
    ) -> Child:
        """Start `launchers.training_process` on a run directory.

        Args:
            directory: the run's.
            environment: variables beside this process's own.
            share: runs that share its GPU.
            rank: among the run's processes; each has a log of its own.
            cores: those that it may use; None is all that this process may.
        """
        log = directory.path / ("log.txt" if rank == 0 else f"log.{rank}.txt")
        say(log, f"starting on {os.uname().nodename}")
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-u",
                    "-m",
                    "launchers.training_process",
                    str(directory.path),
                    "--share",
                    str(share),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **project(), **environment},
            )
        if cores:
            os.sched_setaffinity(process.pid, cores)
        return cls(directory, process, log)

    def tell(self, number: int) -> None:
        """Have the run save and stop at its next step."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.process.poll() is not None

    @property
    def stopped(self) -> bool:
        """Whether it ended because it was asked to, and may go on later.

        A run that has saved exits with 128 + the signal; one that does not listen yet is ended by it.
        """
        code = self.process.returncode
        return -code in STOP_SIGNALS or code - 128 in STOP_SIGNALS

    def see_off(self) -> int:
        """Write down how it ended where it could not do so itself; returns its exit code, above 0.

        A process that the system kills leaves no word, and neither does one that never came to its run.
        """
        code = self.process.returncode
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        say(self.log, f"ended: {how}")
        if code == 0:
            return 0
        state = self.directory.read_status().get("state")
        if self.stopped:
            if state == "running" and not self.directory.is_held():
                self.directory.mark(state="preempted")
            return 128 + abs(code) % 128
        if self.directory.is_held() and code == USER_ERROR:
            return code  # the run is another's
        if code < 0:
            out_of_memory = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
            with self.directory.traceback_file.open("a") as file:
                file.write(f"{self.log.name}: {how}{out_of_memory}\n")
        elif state not in ENDED:
            self.directory.write_traceback(f"{how}; {self.log.name} ends with:\n{tail(self.log, 20)}\n")
        if state not in ENDED and not self.directory.is_held():
            self.directory.mark(state="failed")
        return code if code > 0 else 128 - code


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def tail(log: Path, lines: int) -> str:
    """The last lines of a log, without what a live display overwrites."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 200 * lines - 2000))
        text = file.read().decode(errors="replace")
    return "\n".join(line.rpartition("\r")[2] for line in text.rstrip("\n").split("\n")[-lines:])


class StopSignals:
    """While entered, hands each stop signal to all children, those of the future included."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._hand_on) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def add(self, child: Child) -> Child:
        """A child that has just been started."""
        self.children.append(child)
        if self.signal is not None:
            child.tell(self.signal)
        return child

    def _hand_on(self, number: int, frame: object) -> None:
        self.signal = self.signal or number
        for child in self.children:
            child.tell(number)
