"""Random numbers that a network draws in a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        if torch.Tag.nondeterministic_seeded in func.tags and _rate(func, args, kwargs or {}) != 0:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _rate(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """Return the rate of dropout of a fused attention, which draws nothing at 0; None for others."""
    for place, argument in enumerate(operation._schema.arguments):
        if argument.name == "dropout_p":
            given = args[place] if place < len(args) else argument.default_value
            return kwargs.get("dropout_p", given)
    return None


@torch.no_grad()
def random_operations(network: nn.Module, images: Tensor | list[Tensor]) -> list[str]:
    """Return the operations that draw random numbers in a forward pass in train mode, in their order.

    PyTorch marks each of them, so no list of layers is needed. Buffers and random numbers do not change;
    afterwards the network is in train mode.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng(devices=[]), _Recorder() as recorder:
        functional_call(network.train(), buffers, images)
    return recorder.found
