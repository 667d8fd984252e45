"""Communication between the processes of one run; in a single process every function is the identity.

One group carries CPU tensors by gloo and CUDA tensors by NCCL. Decisions and signals are on the CPU, so that
they never wait for the device. All processes must call the same functions in the same order.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dino_exp.atomic import write_atomically
from dino_exp.errors import UserError
from dino_exp.parallel.processes import Processes

Value = TypeVar("Value")
Items = TypeVar("Items", range, Tensor, Sequence[int])
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MEETING_SECONDS = 300
"""How long to wait for rank 0: where a shared file system is slow, processes start minutes apart."""


class AgreedError(UserError):
    """A `UserError` that all processes raise at the same point, so that they can continue together."""


class OtherFailedError(Exception):
    """The end of a process because another one of the run has failed, of which a user is told there."""


around: Callable[[Callable[[], Any]], Any] | None = None
"""What makes each collective operation, if it is set: `Interrupt.at_once` agrees on a stop before each."""


def collective(operation: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Have `around`, if it is set, make an operation in which all processes take part."""

    @wraps(operation)
    def made(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if around is None:
            return operation(*args, **kwargs)
        return cast(Result, around(partial(operation, *args, **kwargs)))

    return made


def several() -> bool:
    """Return whether this process has joined a group of processes."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the number of this process among all processes of the run, from 0."""
    return dist.get_rank() if several() else 0


def count() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if several() else 1


def is_main() -> bool:
    """Return whether this process is the one that writes the run directory and prints."""
    return rank() == 0


def share_of(items: Items) -> Items:
    """Return this process's share: contiguous, in the order of ranks, equal among them up to one item."""
    return items[len(items) * rank() // count() : len(items) * (rank() + 1) // count()]


@contextmanager
def joined(processes: Processes) -> Iterator[None]:
    """Join the group, and leave it at the end; not after an error, when others may never answer."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = meet(processes.rendezvous, processes) if processes.rendezvous else None
    dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.count)
    yield
    dist.destroy_process_group()


def meet(file: Path, processes: Processes) -> dist.Store:
    """Return the store through which the processes find one another, at a free port of rank 0's machine.

    Rank 0 writes its address to `file`, which must not exist yet; the others wait for it.
    Raises `UserError` if it is not there after `MEETING_SECONDS`.
    """
    if processes.rank == 0:
        host = socket.gethostname()
        store = dist.TCPStore(host, 0, processes.count, is_master=True, wait_for_workers=False)
        write_atomically(file, lambda out: out.write(f"{host}:{store.port}".encode()))
        return store
    deadline = time.monotonic() + MEETING_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{file}: process 0 has not written its address there within {MEETING_SECONDS} s; either it "
                "failed, or this machine does not see the same files."
            )
        time.sleep(0.2)
    host, _, port = file.read_text().rpartition(":")
    return dist.TCPStore(host, int(port), processes.count, is_master=False)


def leave(code: int) -> NoReturn:
    """End this process at once, without waiting for processes that may never answer."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@collective
def total(value: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place."""
    if several():
        dist.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """Average a tensor over the processes, in place."""
    return total(value).div_(count()) if several() else value


@collective
def largest(value: Tensor) -> Tensor:
    """Take the elementwise maximum over the processes, in place."""
    if several():
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


@collective
def gathered(rows: Tensor) -> Tensor:
    """Concatenate the rows (n, ...) of all processes in the order of ranks, (N, ...); n may differ."""
    if not several():
        return rows
    parts = [rows.new_empty((length, *rows.shape[1:])) for length in from_all(len(rows))]
    parts[rank()] = rows.contiguous()
    for source, part in enumerate(parts):
        dist.broadcast(part, src=source)
    return torch.cat(parts)


@collective
def from_all(value: Value) -> list[Value]:
    """Return the values of all processes, by rank."""
    if not several():
        return [value]
    values: list[Value | None] = [None] * count()
    dist.all_gather_object(values, value)
    return cast("list[Value]", values)


@collective
def from_main(value: Value) -> Value:
    """Return rank 0's value in every process; the values of the others are ignored."""
    if not several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


@contextmanager
def agreed() -> Iterator[None]:
    """Raise an `AgreedError` in all processes if any of them raises a `UserError` in the block.

    The block may not communicate: a process that has failed would not take part.
    """
    message = None
    try:
        yield
    except UserError as error:
        message = str(error)
    messages = from_all(message)
    first = next((number for number, text in enumerate(messages) if text is not None), None)
    if first is not None:
        process = f"process {first}: " if first else ""
        raise AgreedError(f"{process}{messages[first]}")
