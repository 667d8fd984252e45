"""A stand-in for a GPU whose tensors have shapes and no values, so that whatever would wait for it raises.

Tensors of the CPU stay real. `cuda` is PyTorch's fake device, without a backward pass; `meta` has one, but
PyTorch makes `torch.tensor(..., device="meta")` without a copy, which is therefore refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class WaitsError(Exception):
    """What was called would wait for the GPU."""


class GPUWithoutValues(TorchDispatchMode):
    """Lets operations of the device compute shapes; raises for those that need to know, or to send, values.

    Reading a value, or choosing by a mask, raises by itself, as there are none. Copies to the CPU, copies
    from memory that is not pinned, and operations on tensors of both (hidden copies) raise `WaitsError`.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.sent: list[Tensor] = []
        """What was copied to the device."""
        self.stream = Stream(self, "main")
        self.log: list[str] = []
        """In which streams operations were enqueued, and what else happened to the streams, in order."""
        self._pinned: list[torch.UntypedStorage] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if tensor.device.type != self.kind]
        device = torch.device(kwargs.get("device") or (tensors[0].device if tensors else "cpu"))
        if len(here) == len(tensors) and device.type != self.kind:
            return self._on_cpu(func, args, kwargs)
        if func in (aten.copy_.default, aten._to_copy.default):
            if device.type != self.kind:
                raise WaitsError(f"{func} to the CPU")
            if here and not (
                self._is_pinned(here[0]) and (kwargs.get("non_blocking") or args[2:] == (True,))
            ):
                raise WaitsError(f"{func} of {tuple(here[0].shape)} that are not pinned, or not non_blocking")
            self.sent += here
        elif any(tensor.ndim for tensor in here):
            raise WaitsError(f"{func} of tensors of both devices")
        if func is not torch.ops.prim.device.default:
            self.note(f"work in {self.stream.name}")
        return func(*args, **kwargs)

    def _on_cpu(self, func: Any, args: Any, kwargs: Any) -> Any:
        pinned = kwargs.pop("pin_memory", False) or func is aten._pin_memory.default
        with unset_fake_temporarily():
            made = args[0].clone() if func is aten._pin_memory.default else func(*args, **kwargs)
        if pinned:
            self._pinned.append(made.untyped_storage())
        return made

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in [storage.data_ptr() for storage in self._pinned]

    def note(self, event: str) -> None:
        """Add to `log`, without repeating its last line."""
        if self.log[-1:] != [event]:
            self.log.append(event)


class Stream:
    """A stand-in for a stream of the GPU."""

    def __init__(self, gpu: GPUWithoutValues, name: str) -> None:
        self.gpu, self.name = gpu, name

    def wait_stream(self, other: Stream) -> None:
        """Make later work of this stream wait for the work of the other so far."""
        self.gpu.note(f"{self.name} waits for {other.name}")


@contextmanager
def gpu_without_values(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[GPUWithoutValues]:
    """Let the device `kind`, cuda or meta, be one that has no values."""
    gpu = GPUWithoutValues(kind)

    @contextmanager
    def in_stream(stream: Stream) -> Iterator[None]:
        before, gpu.stream = gpu.stream, stream
        yield
        gpu.stream = before

    original = torch.tensor

    def tensor(*arguments: Any, **options: Any) -> Tensor:
        if kind == "meta" == torch.device(options.get("device") or "cpu").type:
            raise WaitsError("torch.tensor")
        return original(*arguments, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(gpu, "side"))
    monkeypatch.setattr(torch.cuda, "stream", in_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: gpu.stream)
    monkeypatch.setattr(Tensor, "record_stream", lambda view, stream: gpu.note(f"kept for {stream.name}"))
    with FakeTensorMode(allow_non_fake_inputs=True) if kind == "cuda" else nullcontext(), gpu:
        yield gpu
