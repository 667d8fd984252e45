"""Random numbers that a network draws in a forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode


class _Recorder(TorchDispatchMode):
    """A list of the operations that draw random numbers; those of dropout only if their rate is not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        given |= kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags and given.get("dropout_p") != 0:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def random_operations(network: nn.Module, images: Tensor) -> list[str]:
    """Return the operations that draw random numbers in a forward pass in train mode, in their order.

    PyTorch marks each of them, so no list of layers is needed. Buffers and random numbers do not change;
    afterwards the network is in train mode.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng(devices=[]), _Recorder() as recorder:
        functional_call(network.train(), buffers, images)
    return recorder.found
