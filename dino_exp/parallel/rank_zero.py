"""A command that runs in several processes: rank 0 decides, the others follow."""

from __future__ import annotations

from collections.abc import Callable

from dino_exp.errors import FAILED, INTERRUPTED, UserError, refuse
from dino_exp.parallel.processes import Processes


def in_all_processes(decide: Callable[[], int], follow: Callable[[], int]) -> int:
    """Run `decide` in rank 0 and `follow` in all others, which receive rank 0's exit code last; return it."""
    try:
        processes = Processes.from_environment()
    except UserError as error:
        return refuse([str(error)])
    if processes.count == 1:
        try:
            return decide()
        except KeyboardInterrupt:  # before anything was begun
            return INTERRUPTED
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
    # all at the same time: torchrun sends SIGTERM to processes that still clean up when another has failed
    distributed.leave(code)
