"""One command in several processes: rank 0 decides, the others follow."""

from __future__ import annotations

from collections.abc import Callable

from dino_exp.errors import FAILED, UserError, refuse
from dino_exp.parallel.processes import Processes


def in_all_processes(decide: Callable[[], int], follow: Callable[[], int]) -> int:
    """Have rank 0 decide and all others follow what it tells them, its exit code last; returns that code."""
    try:
        processes = Processes.of()
    except UserError as error:
        return refuse([str(error)])
    if processes.count == 1:
        return decide()
    from dino_exp.parallel import distributed

    code = FAILED
    with distributed.joined(processes):
        if not distributed.is_main():
            code = follow()
        else:
            try:
                code = decide()
            finally:
                distributed.from_main(code)
    # all at one time, or torchrun would end with SIGTERM those who are still at their clean-up
    distributed.leave(code)
