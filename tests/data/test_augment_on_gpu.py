"""The augmentation on a GPU waits for nothing: proved without one, by shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.data.test_fused_color import crops_and_table, every_step
from tests.gpu_without_values import gpu_without_values

FURTHER = dict(vertical_flip=0.5, quarter_turns=1.0, channel_drop=0.3)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        FURTHER,
        dict(rotation=30.0),
        dict(per_channel=True),
        dict(gray_method="average"),
        FURTHER | dict(per_channel=True, channels=5, mean=[0.5] * 5, std=[0.2] * 5),
        dict(channels=1, mean=[0.5], std=[0.2]),
    ],
)
def test_crops_and_tables_are_the_only_copies(
    fused: bool, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    augmentation = every_step(**changes)
    if fused:
        augmentation.fuse()
    _, table = crops_and_table(augmentation, images=16, size=8)
    crops = torch.zeros(len(table), augmentation.channels, 8, 8, dtype=torch.uint8)
    with gpu_without_values("cuda", monkeypatch) as gpu:
        on_gpu = crops.pin_memory().to("cuda", non_blocking=True)
        results = augmentation(on_gpu, table), augmentation.normalize(on_gpu)
    assert len(gpu.sent) == 1 + len(results)
    for result in results:
        assert result.shape == crops.shape
        assert result.dtype == torch.float32
        assert result.device.type == "cuda"
