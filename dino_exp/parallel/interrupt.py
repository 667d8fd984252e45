"""Signals that ask a run to save and stop: at the next step, or at once where nothing can be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dino_exp.parallel import distributed
from dino_exp.parallel.processes import stop_signals

Result = TypeVar("Result")


class Stopped(KeyboardInterrupt):
    """A stop signal that arrived in `Interrupt.at_once`."""

    def __init__(self, agreed: bool = False) -> None:
        super().__init__()
        self.agreed = agreed
        """Whether all processes raise it."""


class Interrupt:
    """Context that records the first of the `stop_signals`; a second Ctrl-C exits at once.

    Processes exchange it once per step, between `begin_step` and `end_step`, so that all of them stop after
    the same step. The message travels on the CPU while the step is computed: nothing waits for it, and it
    does not wait for the device.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that this process received, or learned of from another."""
        self._previous: dict[int, Any] = {}
        self._message = torch.zeros((), dtype=torch.int64)
        self._exchange: dist.Work | None = None
        self._raises = False
        """Whether a signal raises `Stopped` where it arrives."""
        self._grace = 0.0
        """Seconds after the signal until it raises."""

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in stop_signals()}
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._expire)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    # ---- between steps --------------------------------------------------------------------------

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

    # ---- at once --------------------------------------------------------------------------------

    def at_once(self, work: Callable[[], Result], grace: float = 0.0) -> Result:
        """Return what `work` returns; a stop signal ends it where it is, as Ctrl-C ends any Python program.

        With `grace` it ends that many seconds after the signal, and may be complete by then; of several
        processes at once.

        For work that a resume makes again from its beginning, such as an evaluation. All processes call it.
        They agree on a stop before each collective operation of `work` and at its end: a process that has a
        signal waits there for the others, so that none waits for one that has left.

        Raises:
            Stopped: this process or another one has a signal.
        """
        try:
            distributed.around = self._around if distributed.several() else None
            self._grace = grace if self._previous and not distributed.several() else 0.0
            self._listen()
            result = work()
            self._raises = False
            if not self._grace:
                self._agree()
            return result
        except Stopped as stop:
            if not stop.agreed:
                self._agree()
            raise
        finally:
            self._raises, distributed.around = False, None
            if self._grace:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _around(self, operation: Callable[[], Result]) -> Result:
        """Make a collective operation, which no process may leave alone."""
        if not self._raises:  # a part of another one
            return operation()
        self._raises = False
        self._agree()
        result = operation()
        self._listen()
        return result

    def _listen(self) -> None:
        """Raise `Stopped` where a signal arrives from now on, or here if one has arrived already."""
        self._raises = True
        if self.signal is not None:
            self._stop()

    def _stop(self) -> None:
        if self._grace:
            signal.setitimer(signal.ITIMER_REAL, self._grace)
        else:
            self._expire()

    def _expire(self, *_: object) -> None:
        if self._raises:
            self._raises = False  # a second signal must not interrupt the agreement
            raise Stopped

    def _agree(self) -> None:
        """Raise `Stopped` in all processes if one of them has a signal."""
        if distributed.several():
            self._message.fill_(self.signal or 0)
            dist.all_reduce(self._message, op=dist.ReduceOp.MAX)
            self.signal = int(self._message) or self.signal
            if not int(self._message):
                return
        if self.signal is not None:
            raise Stopped(agreed=True)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signal = number
        self._stop()
