"""This machine's queue: `python -m launchers.local SWEEP` trains a sweep's waiting runs, so many at a time.

It runs on its own, so the terminal that submitted may be closed. What it has to do stands in the manifest,
which it reads again and again: runs may be added, and cancelled, at any time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dino_exp.runs.manifest import Manifest, changing
from dino_exp.runs.run_directory import is_locked
from launchers.children import Child, StopSignals, project, say

QUEUE_LOCK = ".queue.lock"
QUEUE_LOG = "queue.log"
LOCAL = "local"
"""The job of a run that is this machine's."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Place:
    """What one run at a time has of this machine."""

    number: int
    gpu: str | None
    share: int
    """Runs on the same GPU."""
    cores: frozenset[int]
    """Empty where the system cannot bind a process to cores."""


def places(settings: Any) -> list[Place]:
    """The machine shared out: GPUs if there are any, and groups of neighboring cores."""
    gpus = visible_gpus()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    count = settings["runs_at_once"] or (len(gpus) * settings["runs_per_gpu"] if gpus else len(cores) or 1)
    each = max(1, len(cores) // count)
    groups = (
        [
            [cores[(start + offset) % len(cores)] for offset in range(each)]
            for start in range(0, each * count, each)
        ]
        if cores
        else [[]] * count
    )
    return [
        Place(
            number,
            gpus[number % len(gpus)] if gpus else None,
            -(-count // len(gpus)) if gpus else 1,
            frozenset(group),
        )
        for number, group in enumerate(groups)
    ]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu and gpu != "-1"]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(index) for index in range(len(lines))] if done.returncode == 0 else []


def start_queue(folder: Path) -> None:
    """Start the queue in the background, and come back when it is at work.

    Where there is one already, the new one goes away by itself.
    """
    with (folder / QUEUE_LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "launchers.local", str(folder.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is not for it
            env={**os.environ, **project()},
        )
    while process.poll() is None and not is_locked(folder / QUEUE_LOCK):
        time.sleep(0.05)


class Queue:
    """The runs of one sweep on this machine."""

    def __init__(self, folder: Path, stop: StopSignals) -> None:
        self.folder, self.stop = folder, stop
        self.manifest = Manifest.load(folder)
        self.places = places(self.manifest.settings)
        self.busy: dict[Place, Child] = {}

    def waiting(self) -> list[str]:
        """Runs that nobody has begun."""
        started = {child.directory.path.name for child in self.busy.values()}
        return [
            name
            for name, entry in self.manifest.runs.items()
            if entry.job == LOCAL
            and not entry.cancelled
            and name not in started
            and self.manifest.directory(name).read_status().get("state") == "pending"
        ]

    def work(self, lock: FileLock) -> None:
        """Train until no run waits, or a stop signal comes, on which all runs save."""
        while True:
            with changing(self.folder):  # so that nobody adds a run between the last look and the end
                self.manifest = Manifest.load(self.folder)
                waiting = self.waiting() if self.stop.signal is None else []
                if not waiting and not self.busy:
                    lock.release()
                    return
            for place in self.places:
                if waiting and place not in self.busy:
                    self.busy[place] = self.start(waiting.pop(0), place)
            time.sleep(POLL_SECONDS)
            self.look_after()

    def start(self, name: str, place: Place) -> Child:
        """Begin a run."""
        environment = {} if place.gpu is None else {"CUDA_VISIBLE_DEVICES": place.gpu}
        directory = self.manifest.directory(name)
        say(self.folder / QUEUE_LOG, f"{name}: starting")
        child = Child.start(directory, environment, share=place.share, cores=set(place.cores))
        return self.stop.add(child)

    def look_after(self) -> None:
        """Stop what was cancelled, and see off what has ended."""
        for place, child in list(self.busy.items()):
            name = child.directory.path.name
            cancelled = self.manifest.runs[name].cancelled
            if cancelled:
                child.tell(signal.SIGTERM)
            if child.ended:
                code = child.see_off()
                if cancelled and child.stopped:
                    child.directory.mark(state="cancelled")
                say(self.folder / QUEUE_LOG, f"{name}: exit code {code}")
                self.stop.children.remove(child)
                del self.busy[place]


def main(folder: Path) -> None:
    """Hold the sweep's queue while there is work; leave if another process holds it."""
    lock = FileLock(folder / QUEUE_LOCK)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        return  # that one sees what is new
    with StopSignals() as stop:
        say(folder / QUEUE_LOG, f"queue: process {os.getpid()}")
        Queue(folder, stop).work(lock)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
