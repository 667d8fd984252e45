"""The processes that look at images: they end with the one that waits for them, and their death is said."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress

import pytest

from dino_exp.errors import MachineError
from dino_exp.inspection.looking import Part, Task, parts_of
from tests.programs import until


def hang(task: Task) -> Part:
    """Return at once for the first task, and hang, as a network disk does, for the others."""
    if task.start:
        time.sleep(600)
    return Part()


def die(task: Task) -> Part:
    os.kill(os.getpid(), signal.SIGKILL)
    return Part()


TASKS = [Task(start, [True]) for start in range(4)]


def test_processes_that_hang_do_not_keep_ctrl_c() -> None:
    before = set(multiprocessing.active_children())
    with suppress(KeyboardInterrupt), parts_of(hang, TASKS) as parts:
        next(parts)
        children = set(multiprocessing.active_children()) - before
        assert children
        raise KeyboardInterrupt
    # which the thread of the pool waits for as well, so that this one may miss their end
    until(lambda: not children & set(multiprocessing.active_children()), "the processes have ended", 10)


def test_a_process_that_is_killed_is_said() -> None:
    with pytest.raises(MachineError, match="killed"), parts_of(die, TASKS) as parts:
        list(parts)
