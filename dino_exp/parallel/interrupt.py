"""Signals that ask a run to save and stop at the next step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist

from dino_exp.parallel import distributed

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]
"""Ctrl-C, what SLURM sends before it preempts or at the time limit, and what submitit sends."""


class Interrupt:
    """While entered, notes the first of the `STOPPING` signals; a second Ctrl-C leaves at once.

    Several processes tell one another once per step, between `begin_step` and `end_step`, so that all of them
    stop after the same one. The message is under way while the step is computed, and on the CPU, so nothing
    waits for it or for the device.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """That this process has noted, or learned of at the end of a step."""
        self._previous: dict[int, Any] = {}
        self._message = torch.zeros((), dtype=torch.int64)
        self._under_way: dist.Work | None = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in STOPPING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def begin_step(self) -> None:
        """Tell the other processes of a signal that came before this."""
        if distributed.several():
            self._message.fill_(self.signal or 0)
            self._under_way = dist.all_reduce(self._message, op=dist.ReduceOp.MAX, async_op=True)

    def end_step(self) -> int | None:
        """The signal to stop for, the same in all processes; None to go on."""
        if self._under_way is None:
            return self.signal
        self._under_way.wait()
        self._under_way = None
        agreed = int(self._message) or None
        self.signal = agreed or self.signal
        return agreed

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
