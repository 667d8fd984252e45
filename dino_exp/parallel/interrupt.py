"""Signals that ask a run to save and stop at the next step boundary."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from dino_exp.parallel import distributed

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]
"""Ctrl-C, the signals of SLURM before a preemption or the time limit, and that of submitit."""


class Interrupt:
    """Context that records the first of the `STOPPING` signals; a second Ctrl-C exits at once.

    Processes exchange it once per step, between `begin_step` and `end_step`, so that all of them stop after
    the same step. The message travels on the CPU while the step is computed: nothing waits for it, and it
    does not wait for the device.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that this process received, or learned of from another at the end of a step."""
        self._previous: dict[int, Any] = {}
        self._message = torch.zeros((), dtype=torch.int64)
        self._exchange: dist.Work | None = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def begin_step(self) -> None:
        """Start to tell the other processes about a signal that arrived before this step."""
        if distributed.several():
            self._message.fill_(self.signal or 0)
            self._exchange = dist.all_reduce(self._message, op=dist.ReduceOp.MAX, async_op=True)

    def end_step(self) -> int | None:
        """Return the signal to stop for, the same in all processes; None to continue."""
        if self._exchange is None:
            return self.signal
        self._exchange.wait()
        self._exchange = None
        agreed = int(self._message) or None
        self.signal = agreed or self.signal
        return agreed

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
