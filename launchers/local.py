"""The queue of this machine: `python -m launchers.local SWEEP` trains a sweep's pending runs.

It is a process of its own, so the terminal that submitted may be closed. It reads the manifest again before
each decision, so runs may be added and cancelled at any time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dino_exp.atomic import is_locked
from dino_exp.config.plugins import named_by
from dino_exp.config.stored import read_if_possible
from dino_exp.errors import UserError
from dino_exp.runs.manifest import Manifest, changing
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.streams import protect
from launchers.approval import is_known
from launchers.children import Child, StopSignals, log_event, open_log, python_path, sharing_batches
from launchers.worker import output_of, recorded_state

QUEUE_LOCK = ".queue.lock"
QUEUE_LOG = "queue.log"
LOCAL = "local"
"""The job id of runs that this queue trains."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Slot:
    """The share of this machine that one run uses at a time."""

    number: int
    gpu: str | None
    share: int
    """Number of runs on the same GPU."""
    cores: frozenset[int]
    """CPU cores; empty where the system cannot bind a process to cores."""


def slots(settings: Any) -> list[Slot]:
    """Return the slots of this machine: its GPUs, if any, and groups of neighboring cores."""
    gpus = visible_gpus()
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    per_gpu = settings.get("runs_per_gpu", 1)
    count = settings.get("runs_at_once") or (len(gpus) * per_gpu if gpus else len(cores) or 1)
    each = max(1, len(cores) // count)
    share = -(-count // len(gpus)) if gpus else 1
    found = []
    for number in range(count):
        own = [cores[(number * each + offset) % len(cores)] for offset in range(each)] if cores else []
        found.append(Slot(number, gpus[number % len(gpus)] if gpus else None, share, frozenset(own)))
    return found


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu and gpu != "-1"]
    lines = (output_of("nvidia-smi", "-L") or "").splitlines()
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in lines))]


def start_queue(folder: Path) -> None:
    """Start the queue in the background, and return once it is running.

    One that is running reads the manifest again before it ends, so it has the runs that were added before
    this call.
    """
    if is_locked(folder / QUEUE_LOCK):
        return
    with open_log(folder / QUEUE_LOG) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "launchers.local", str(folder.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C in the terminal does not reach it
            env={**os.environ, **python_path()},
        )
    while process.poll() is None and not is_locked(folder / QUEUE_LOCK):
        time.sleep(0.05)


class Queue:
    """The runs of one sweep on this machine."""

    def __init__(self, folder: Path, stop: StopSignals) -> None:
        self.folder, self.stop = folder, stop
        self.manifest = Manifest.load(folder)
        self.slots = slots(self.manifest.settings)
        self.busy: dict[Slot, Child] = {}
        self.refused: set[str] = set()
        """Runs that cannot be started."""

    def waiting(self) -> list[str]:
        """Return the names of the runs that have not started."""
        started = {child.directory.path.name for child in self.busy.values()}
        return [
            name
            for name, entry in self.manifest.runs.items()
            if entry.job == LOCAL
            and not entry.cancelled
            and name not in started | self.refused
            and recorded_state(self.folder, name) == "pending"
        ]

    def work(self, lock: FileLock) -> None:
        """Train until no run is waiting; after a stop signal, until all runs have saved and stopped."""
        while True:
            with changing(self.folder):  # so that no run is added between the last check and the release
                self.read_manifest()
                waiting = self.waiting() if self.stop.signal is None else []
                if not waiting and not self.busy:
                    lock.release()
                    return
            for slot in self.slots:
                if waiting and slot not in self.busy:
                    self.start(waiting.pop(0), slot)
            time.sleep(POLL_SECONDS)
            self.check_children()

    def read_manifest(self) -> None:
        """Read the manifest again; while it is damaged, it is as it was."""
        with suppress(UserError):
            manifest = Manifest.load(self.folder)
            if not manifest.problems:
                self.manifest = manifest

    def start(self, name: str, slot: Slot) -> None:
        """Start a run in a slot; one that cannot be started is logged and not tried again."""
        environment = sharing_batches(len(self.slots))
        if slot.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot.gpu
        directory = self.manifest.directory(name)
        log_event(self.folder / QUEUE_LOG, f"{name}: starting")
        try:
            plugins = permitted(directory)
            child = Child.start(
                directory, environment, share=slot.share, cores=set(slot.cores), plugins=plugins
            )
        except UserError as error:
            self.refused.add(name)
            log_event(self.folder / QUEUE_LOG, f"{name}: {error}")
        else:
            self.busy[slot] = self.stop.add(child)

    def check_children(self) -> None:
        """Stop the runs that were cancelled, and free the slots of those that have ended."""
        for slot, child in list(self.busy.items()):
            name = child.directory.path.name
            entry = self.manifest.runs.get(name)
            cancelled = entry is not None and entry.cancelled
            if cancelled:
                child.send(signal.SIGTERM)
            if child.ended:
                code = child.record_exit()
                if cancelled and child.stopped:
                    child.directory.mark(state="cancelled")
                log_event(self.folder / QUEUE_LOG, f"{name}: exit code {code}")
                self.stop.children.remove(child)
                del self.busy[slot]


def permitted(directory: RunDirectory) -> dict[str, str]:
    """Return the modules that a run imports, with the folder of each.

    Raises:
        UserError: this user has not named one of them: another person has changed the run's files.
    """
    problems: list[str] = []
    plugins = named_by(read_if_possible(directory.config_file, problems), directory.read_status())
    for name, folder in plugins.items():
        if not is_known(name, folder):
            raise UserError(f"plugins = {name} of {folder}: you have not named this module; not imported.")
    return plugins


def main(folder: Path) -> None:
    """Run the sweep's queue until nothing is left to train; return at once if another process runs it."""
    protect()
    lock = FileLock(folder / QUEUE_LOCK)
    try:
        lock.acquire(timeout=5)
    except Timeout:
        return  # the other queue reads the manifest again and finds the new runs
    with StopSignals() as stop:
        log_event(folder / QUEUE_LOG, f"queue: process {os.getpid()}")
        try:
            Queue(folder, stop).work(lock)
        except UserError as error:
            log_event(folder / QUEUE_LOG, f"queue: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
