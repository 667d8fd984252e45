"""The stand-in for a GPU refuses what would wait for one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.gpu_without_values import WaitsError, gpu_without_values

WAITS: dict[str, Callable[[Tensor], object]] = {
    "reading a value": lambda x: x.sum().item(),
    "a decision": lambda x: bool(x[0] > 0),
    "a list": lambda x: x.tolist(),
    "choosing by a mask": lambda x: x[x > 0],
    "indices of a mask": lambda x: (x > 0).nonzero(),
    "to the CPU": lambda x: x.cpu(),
    "to a tensor of the CPU": lambda x: torch.zeros(3).copy_(x),
    "from ordinary memory": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "from pinned memory, waiting": lambda x: torch.zeros(3).pin_memory().to(x.device),
    "into a tensor of the GPU": lambda x: x.copy_(torch.zeros(3)),
    "a new tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "an index of the CPU": lambda x: x[torch.tensor([0, 2])],
}


@pytest.mark.parametrize("kind", ["cuda", "meta"])
@pytest.mark.parametrize("name", WAITS)
def test_what_waits_raises(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu_without_values(kind, monkeypatch):
        x = torch.zeros(3, device=kind)
        with pytest.raises((WaitsError, RuntimeError, NotImplementedError)):
            WAITS[name](x)
        sent = torch.ones(3).pin_memory().to(x.device, non_blocking=True)
        assert (x + sent * torch.tensor(2.0)).shape == (3,)
