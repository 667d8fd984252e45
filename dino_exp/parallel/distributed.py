"""Communication between the processes of one run; in a single process every function is the identity.

One group carries CPU tensors by gloo and CUDA tensors by NCCL. Decisions and signals are on the CPU, so that
they never wait for the device. All processes must call the same functions in the same order.

Values travel as JSON. torch's own functions for objects would unpickle, and so execute, what arrives over
connections that do not ask who is at the other end.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from dino_exp.atomic import write_atomically
from dino_exp.console import Console, a_console
from dino_exp.errors import UserError
from dino_exp.parallel.processes import Processes

Value = TypeVar("Value")
Items = TypeVar("Items", range, Tensor, Sequence[int])
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LOOPBACK = "127.0.0.1"
SIOCGIFADDR = 0x8915
"""Linux's request for the IPv4 address of a network interface."""
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


def console_for_a_run() -> Console:
    """Return `a_console()` on rank 0, and a quiet one elsewhere."""
    return a_console() if is_main() else Console(quiet=True, force_terminal=False)


def share_of(items: Items) -> Items:
    """Return this process's share: contiguous, in the order of ranks, equal among them up to one item."""
    return items[len(items) * rank() // count() : len(items) * (rank() + 1) // count()]


@contextmanager
def joined(processes: Processes) -> Iterator[None]:
    """Join the group, and leave it at the end; not after an error, when others may never answer."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = meet(processes.rendezvous, processes) if processes.rendezvous else None
    try:
        dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.count)
    finally:
        if processes.rendezvous and processes.rank == 0:
            processes.rendezvous.unlink(missing_ok=True)
    yield
    dist.destroy_process_group()


def meet(file: Path, processes: Processes) -> dist.Store:
    """Return the store through which the processes find one another, at a free port of rank 0's machine.

    Rank 0 writes its address to `file`, which must not exist yet; the others wait for it. On one machine,
    nothing can be reached from others.
    Raises `UserError` if it is not there after `MEETING_SECONDS`.
    """
    if processes.on_one_machine and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if processes.rank == 0:
        host = LOOPBACK if processes.on_one_machine else address()
        # torch would listen at all addresses of the machine
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        port, number = listener.getsockname()[1], listener.detach()
        store = dist.TCPStore(
            host, port, processes.count, is_master=True, wait_for_workers=False, master_listen_fd=number
        )
        write_atomically(file, lambda out: out.write(f"{host}:{port}".encode()))
        return store
    deadline = time.monotonic() + MEETING_SECONDS
    while not file.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{file}: process 0 has not written its address there within {MEETING_SECONDS} s; either it "
                "failed, or this machine does not see the same files."
            )
        time.sleep(0.2)
    host, _, port = file.read_text("utf-8").rpartition(":")
    return dist.TCPStore(host, int(port), processes.count, is_master=False)


def address() -> str:
    """Return this machine's address in the network that gloo uses: `GLOO_SOCKET_IFNAME`, or its name's."""
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    if interface and sys.platform == "linux":
        import fcntl  # not everywhere

        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            asked = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, asked)[20:24])
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()}: this machine's name has no address ({error.strerror}); set "
            "GLOO_SOCKET_IFNAME to the name of its network, as in `ip addr`."
        ) from None
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])


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
    return torch.cat(_of_all(rows)) if several() else rows


def _of_all(rows: Tensor) -> list[Tensor]:
    """Return the rows (n, ...) of each process by rank; n may differ."""
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(count())]
    dist.all_gather(lengths, torch.tensor([len(rows)]))
    parts = [rows.new_empty((int(length), *rows.shape[1:])) for length in lengths]
    parts[rank()] = rows.contiguous()
    for source, part in enumerate(parts):
        if len(part):
            dist.broadcast(part, src=source)
    return parts


@collective
def from_all(value: Value) -> list[Value]:
    """Return the values of all processes, by rank.

    A value is what JSON has: None, numbers (infinite ones and NaN too), text, lists, and dictionaries by
    text. Tuples become lists.
    """
    return [_decoded(part) for part in _of_all(_encoded(value))] if several() else [value]


@collective
def from_main(value: Value) -> Value:
    """Return rank 0's value, as for `from_all`, in every process; the values of the others are ignored."""
    if not several():
        return value
    return _decoded(_of_all(_encoded(value) if is_main() else torch.empty(0, dtype=torch.uint8))[0])


def _encoded(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _decoded(text: Tensor) -> Any:
    return json.loads(text.numpy().tobytes())


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
