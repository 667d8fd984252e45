"""Operations on a batch of crops, planned on the CPU and then done on the training device.

What an operation needs besides the crops (which of them it changes, and by how much) is known on the CPU
before any pixel is. So the tables of all operations reach a GPU in one copy, from pinned memory. Unlike a
copy from ordinary memory, or a choice of crops by a mask on the device, it does not wait for earlier work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Tables = TypeVar("Tables")

ALIGNMENT = 16
"""Bytes. Where a table begins: compiled kernels copy an input that is aligned less."""


class Operation(NamedTuple):
    """A function of the crops and of tables, which returns the crops to go on with."""

    function: Callable[..., Tensor]
    tables: tuple[Tensor | tuple[Any, ...], ...] = ()
    """Tensors on the CPU, also in tuples."""


def change(step: Callable[..., Tensor], index: Tensor, *values: Tensor) -> list[Operation]:
    """Plan a step that changes the crops at `index` (n,) in place, with values (n, ...) of theirs.

    No operation is needed where no crop is chosen.
    """
    return [Operation(functools.partial(_change, step), (index, *values))] if len(index) else []


def _change(step: Callable[..., Tensor], crops: Tensor, index: Tensor, *values: Tensor) -> Tensor:
    crops[index] = step(crops.index_select(0, index), *values)
    return crops


def do(operations: Sequence[Operation], crops: Tensor) -> Tensor:
    """Return the crops after the operations, in order, on the device that they are on."""
    tables = to_device([operation.tables for operation in operations], crops.device)
    for operation, its_tables in zip(operations, tables, strict=True):
        crops = operation.function(crops, *its_tables)
    return crops


def to_device(tables: Tables, device: torch.device) -> Tables:
    """Return tensors of the CPU, in lists and tuples, on the device: one copy, which does not wait for it.

    The pinned memory may be let go at once: PyTorch uses it again only after the copy.
    """
    if device.type == "cpu":
        return tables
    leaves, structure = tree_flatten(tables)
    sizes = [-(-leaf.nbytes // ALIGNMENT) * ALIGNMENT for leaf in leaves]
    on_gpu = device.type == "cuda"
    packed = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=on_gpu)
    for leaf, part in zip(leaves, packed.split(sizes), strict=True):
        part[: leaf.nbytes] = leaf.contiguous().view(-1).view(torch.uint8)
    parts = packed.to(device, non_blocking=on_gpu).split(sizes)
    views = [
        part[: leaf.nbytes].view(leaf.dtype).view(leaf.shape)
        for leaf, part in zip(leaves, parts, strict=True)
    ]
    return tree_unflatten(views, structure)
