"""Loader processes: how they hand over what they made, and how the run waits for it.

Everything goes through memory that both sides share from the start. torch's own way makes a file in /dev/shm
for each tensor: one that does not fit (containers have 64 MB) is lost without an error, and the run waits for
a loader process that was stopped in between.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import cycle
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_exp.data.read_ahead import ahead, patience
from dino_exp.errors import MachineError, UserError, in_words
from dino_exp.parallel.processes import STOPPING

Task = TypeVar("Task")
Task_co = TypeVar("Task_co", covariant=True)

FORK = "fork" if sys.platform == "linux" else None
"""How loader processes are started; None is Python's default."""
PREFETCH = 4
"""Batches that each loader process makes ahead."""
ALIGNMENT = 16
"""Bytes. Where a tensor may begin."""
FROZEN_SECONDS = 5
"""How long a batch is waited for before a suspended loader process is an error."""
REASONS = {
    signal.SIGKILL: ", perhaps because memory ran out: lower trainer.num_workers or trainer.batch_size",
    signal.SIGBUS: ": a file that it read was cut, or its disk failed",
}


class Tasks(Sized, Protocol[Task_co]):
    """What is to be made, in order."""

    def __iter__(self) -> Iterator[Task_co]: ...


class Slots:
    """Places for what is made, shared with the loader processes.

    Args:
        count: number of places.
        size: bytes of one; tensors that do not fit are sent through a pipe, which is slower.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size + 8 * ALIGNMENT
        length = self.count * self.size
        # memory without a file, which /dev/shm does not limit, is inherited by fork alone
        self._memory = (
            torch.frombuffer(mmap.mmap(-1, length), dtype=torch.uint8)
            if FORK
            else torch.empty(length, dtype=torch.uint8).share_memory_()
        )

    def put(self, slot: int, tensors: Sequence[Tensor]) -> list[Any]:
        """Copy tensors to a slot, and return what `take` needs."""
        parts: list[Any] = []
        memory, at = self._memory.numpy(), slot * self.size
        for tensor in tensors:
            array = tensor.contiguous().numpy()
            if at + array.nbytes > (slot + 1) * self.size:
                parts.append(array)
                continue
            memory[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
            parts.append((at, array.dtype, array.shape))
            at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        return parts

    def take(self, parts: Sequence[Any], pin_memory: bool) -> list[Tensor]:
        """Return copies of the tensors that were put."""
        memory, tensors = self._memory.numpy(), []
        for part in parts:
            if isinstance(part, np.ndarray):
                array = part
            else:
                at, stored, shape = part
                array = memory[at : at + stored.itemsize * math.prod(shape)].view(stored).reshape(shape)
            kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
            tensor = torch.empty(array.shape, dtype=kind, pin_memory=pin_memory)
            tensor.numpy()[...] = array
            tensors.append(tensor)
        return tensors


class _Making(Dataset[Any]):
    """What runs in a loader process: makes the tensors of a task, and puts them into a slot."""

    def __init__(self, make: Callable[[Any], Sequence[Tensor]], slots: Slots) -> None:
        self.make, self.slots = make, slots

    def __getitem__(self, item: tuple[int, Any]) -> list[Any] | UserError:
        slot, task = item
        try:
            return self.slots.put(slot, self.make(task))
        except UserError as error:  # DataLoader would put a traceback around its message
            return error


def _unchanged(made: list[Any] | UserError) -> list[Any] | UserError:
    return made


def made_by_processes(
    make: Callable[[Task], Sequence[Tensor]],
    tasks: Tasks[Task],
    *,
    workers: int,
    size: int,
    pin_memory: bool,
    look: Callable[[float], None],
) -> Iterator[list[Tensor]]:
    """Yield the tensors that `make` returns for each task, in order, made ahead by `workers` processes.

    Args:
        size: bytes of the tensors of one task.
        look: as in `ahead`.

    Raises:
        MachineError: processes cannot be started, or one was killed or is suspended.
        UserError: as `make` raised it; other exceptions come with the traceback of the process.
    """
    arrivals = _Arrivals(make, tasks, workers, size, pin_memory)

    def watch(waited: float) -> None:
        look(waited)
        arrivals.check(waited)
        patience(waited)

    try:
        # one thread copies the next batch from its slot while the present one is used
        yield from ahead(lambda _: arrivals.next(), range(len(tasks)), workers=1, look=watch)
    finally:
        arrivals.kill()


class _Arrivals:
    """The loader processes; started, as torch's signal handlers ask for, by the thread that waits for them.

    In the main thread torch would raise the death of a process in the middle of a training step.
    """

    def __init__(
        self,
        make: Callable[[Any], Sequence[Tensor]],
        tasks: Tasks[Any],
        workers: int,
        size: int,
        pin_memory: bool,
    ) -> None:
        self.count, self.pin_memory = workers, pin_memory
        self.device = torch.cuda.current_device() if pin_memory else None
        self.processes: list[BaseProcess] = []
        try:
            self.slots = Slots(PREFETCH * workers + 1, size)
        except (OSError, RuntimeError) as error:
            raise self._not_started(error) from error
        # A slot is filled again once the batch that was in it has been taken.
        self.loader = DataLoader(
            _Making(make, self.slots),
            sampler=zip(cycle(range(self.slots.count)), tasks, strict=False),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=PREFETCH,
            collate_fn=_unchanged,
            worker_init_fn=outlive_stop_signals,
            multiprocessing_context=FORK,
        )
        self.iterator: Iterator[Any] | None = None

    def next(self) -> list[Tensor]:
        """Return the tensors of the next task."""
        if self.iterator is None:
            self._start()
        assert self.iterator is not None
        try:
            made = next(self.iterator)
        except RuntimeError:
            self.check(0)
            raise
        if isinstance(made, UserError):
            raise made
        return self.slots.take(made, self.pin_memory)

    def check(self, waited: float) -> None:
        """Raise MachineError if a process has ended, or is suspended and was waited for long."""
        for process in self.processes:
            code = process.exitcode
            if code is not None and code < 0:
                number = signal.Signals(-code)
                raise MachineError(f"A loader process was killed by {number.name}{REASONS.get(number, '')}.")
            if code is not None:
                raise MachineError(f"A loader process ended by itself, with exit code {code}.")
            if waited >= FROZEN_SECONDS and _is_suspended(process.pid):
                raise MachineError(
                    f"Loader process {process.pid} has been suspended (by SIGSTOP, or a debugger) for "
                    f"{waited:.0f} s. The same command resumes."
                )

    def kill(self) -> None:
        """End the processes at once: they own nothing, and a suspended one hears nothing else."""
        for process in self.processes:
            process.kill()

    def _start(self) -> None:
        if self.device is not None:
            torch.cuda.set_device(self.device)  # pinned memory belongs to it
        before = set(multiprocessing.active_children())
        try:
            self.iterator = iter(self.loader)
        except (OSError, RuntimeError) as error:
            raise self._not_started(error) from error
        finally:
            self.processes = [each for each in multiprocessing.active_children() if each not in before]

    def _not_started(self, error: Exception) -> MachineError:
        reason = in_words(error) if isinstance(error, OSError) else str(error)
        return MachineError(
            f"trainer.num_workers = {self.count}: the loader processes cannot be started ({reason}). Use "
            "fewer, raise the limit, or train without: trainer.num_workers=0."
        )


def _is_suspended(pid: int | None) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] in "Tt"
    except OSError:  # another system, or it has just ended
        return False


def outlive_stop_signals(worker: int) -> None:
    """Make a loader process ignore the signals that stop a run, until its parent stops it.

    Ctrl-C and SLURM signal every process of a run. The run then saves at the end of its step, for which it
    needs its loaders. SIGTERM from the parent itself, which so ends a loader that hangs, is obeyed where the
    system tells who sent it.
    """
    others = [number for number in STOPPING if number != signal.SIGTERM]
    for number in others:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_exit_on_signal_of_parent, daemon=True).start()


def _exit_on_signal_of_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
