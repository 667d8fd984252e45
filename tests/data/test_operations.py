"""Tables of planned operations on their way to the device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dino_exp.data.operations import ALIGNMENT, change, to_device
from tests.gpu_without_values import gpu_without_values

NUMBERS = torch.arange(12, dtype=torch.float32).view(3, 4)
TABLES = [
    (torch.tensor([3, 1, 2]), (NUMBERS, NUMBERS[:, 3])),  # the last is not contiguous
    (torch.tensor([True, False, True]), (torch.empty(0, 5), torch.tensor(2.5, dtype=torch.float64))),
]


def test_tables_are_unchanged_after_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu_without_values("cuda", monkeypatch) as gpu:
        copied = to_device(TABLES, torch.device("cuda"))
        (packed,) = gpu.sent

    def content(there: Tensor) -> Tensor:
        start = there.storage_offset() * there.element_size()
        assert start % ALIGNMENT == 0
        assert there.is_contiguous()
        return packed[start : start + there.nbytes].view(there.dtype).view(there.shape)

    found = [(content(first), (content(second), content(third))) for first, (second, third) in copied]
    torch.testing.assert_close(found, TABLES, rtol=0, atol=0)


def test_on_the_cpu_tables_stay_where_they_are() -> None:
    assert to_device(TABLES, torch.device("cpu")) is TABLES


def test_a_step_that_no_crop_was_drawn_for_is_not_planned() -> None:
    assert change(torch.neg, torch.empty(0, dtype=torch.int64)) == []
