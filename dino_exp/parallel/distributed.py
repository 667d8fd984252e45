"""What the processes of one run tell one another; in a single process every function is the identity.

One group carries CPU tensors by gloo and CUDA tensors by NCCL. Decisions and signals are on the CPU, so that
they never wait for the device. Every function is to be called by all processes, in the same order.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dino_exp.atomic import write_atomically
from dino_exp.errors import UserError
from dino_exp.parallel.processes import Processes

Value = TypeVar("Value")

MEETING_SECONDS = 300
"""The processes of a job start minutes apart where a shared file system is slow."""


class AgreedError(UserError):
    """A `UserError` that all processes raise at the same place, so that they can go on together."""


def several() -> bool:
    """Whether this process is one of several that have joined."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """The number of this process among all, from 0."""
    return dist.get_rank() if several() else 0


def count() -> int:
    """All processes of the run."""
    return dist.get_world_size() if several() else 1


def is_main() -> bool:
    """Whether this process writes the run directory and talks to people."""
    return rank() == 0


@contextmanager
def joined(processes: Processes) -> Iterator[None]:
    """The group while entered. It is not taken down after an error, because others may never answer."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = meet(processes.rendezvous, processes) if processes.rendezvous else None
    dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.count)
    yield
    dist.destroy_process_group()


def meet(file: Path, processes: Processes) -> dist.Store:
    """The store through which the processes find one another, at a port that was free when rank 0 took it.

    Rank 0 writes its address into `file`, which must be new; the others wait for it.
    """
    if processes.rank == 0:
        host = socket.gethostname()
        store = dist.TCPStore(host, 0, processes.count, is_master=True, wait_for_workers=False)
        write_atomically(file, lambda out: out.write(f"{host}:{store.port}".encode()))
        return store
    patience = time.monotonic() + MEETING_SECONDS
    while not file.exists():
        if time.monotonic() > patience:
            raise UserError(
                f"{file}: process 0 has not written its address there in {MEETING_SECONDS} s; it has failed, "
                "or this machine does not see the same files."
            )
        time.sleep(0.2)
    host, _, port = file.read_text().rpartition(":")
    return dist.TCPStore(host, int(port), processes.count, is_master=False)


def leave(code: int) -> NoReturn:
    """End this process at once, without waiting for processes that may never answer."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def total(value: Tensor) -> Tensor:
    """Sum over the processes, in place."""
    if several():
        dist.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """Mean over the processes, in place."""
    return total(value).div_(count()) if several() else value


def largest(value: Tensor) -> Tensor:
    """Elementwise maximum over the processes, in place."""
    if several():
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def gathered(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all processes in their order, (N, ...); n may differ between them."""
    if not several():
        return rows
    parts = [rows.new_empty((length, *rows.shape[1:])) for length in from_all(len(rows))]
    parts[rank()] = rows.contiguous()
    for source, part in enumerate(parts):
        dist.broadcast(part, src=source)
    return torch.cat(parts)


def from_all(value: Value) -> list[Value]:
    """Every process's value, by rank."""
    if not several():
        return [value]
    values: list[Value | None] = [None] * count()
    dist.all_gather_object(values, value)
    return cast("list[Value]", values)


def from_main(value: Value) -> Value:
    """The value of rank 0; what the others pass is dropped."""
    if not several():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


@contextmanager
def agreed() -> Iterator[None]:
    """Let all processes raise an `AgreedError` where any of them raises a `UserError` inside.

    Nothing inside may call another function of this module, which a process that has failed would miss.
    """
    refusal = None
    try:
        yield
    except UserError as error:
        refusal = str(error)
    refusals = from_all(refusal)
    first = next((number for number, text in enumerate(refusals) if text is not None), None)
    if first is not None:
        only_there = f"process {first}: " if first else ""
        raise AgreedError(f"{only_there}{refusals[first]}")
