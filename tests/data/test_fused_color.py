"""The compiled form of the color steps against their definition in `augment` and `crop_steps`."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

from dino_exp.data import augment
from dino_exp.data.augment import Augment
from tests.data.sources import released_augment


def every_step(**changes: Any) -> Augment:
    """Return an augmentation in which every step is frequent."""
    frequent = dict(jitter=0.9, saturation=0.4, hue=0.5, blur=[0.7, 0.7, 0.7], solarize=0.7)
    normalization = dict(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    return released_augment(**(frequent | normalization | changes))


def crops_and_table(augmentation: Augment, images: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(size)
    table = augmentation.parameters(random.random((3, images, augmentation.uniforms)))
    coarse = torch.from_numpy(random.random((3 * images, 3, 6, 6), np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().byte(), torch.from_numpy(table).flatten(0, 1)


@pytest.mark.parametrize(
    "changes", [{}, dict(rotation=180.0), dict(vertical_flip=0.5, quarter_turns=1.0, channel_drop=0.3)]
)
def test_fused_and_single_steps_agree(changes: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    augmentation = every_step(**changes)
    crops, table = crops_and_table(augmentation, images=200, size=16)
    before = crops.clone()
    expected = augmentation(crops, table)
    augmentation.fuse()
    torch.testing.assert_close(augmentation(crops, table), expected, atol=2e-4, rtol=0)
    assert torch.equal(crops, before)
    both = (table[:, augment.SIGMA] > 0) & (table[:, augment.SOLARIZE] > 0)
    assert both.any()
    assert len(table[:, augment.ORDER].unique()) == 24


@pytest.mark.spawn  # a C++ compiler
def test_compiled_and_single_steps_agree_at_two_sizes() -> None:
    augmentation = every_step()
    for size, images in ((24, 5), (17, 7)):
        crops, table = crops_and_table(augmentation, images, size)
        augmentation._fused = None
        expected = augmentation(crops, table)
        augmentation.fuse()
        torch.testing.assert_close(augmentation(crops, table), expected, atol=2e-4, rtol=0)
        assert augmentation._fused is not None


def test_without_a_compiler_the_steps_are_done_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    torch._dynamo.reset()
    augmentation = every_step()
    crops, table = crops_and_table(augmentation, 3, 19)
    expected = augmentation(crops, table)
    augmentation.fuse()
    no_compiler = {"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}
    with torch._inductor.config.patch(no_compiler), caplog.at_level(logging.WARNING):
        assert torch.equal(augmentation(crops, table), expected)
    assert "uncompiled" in caplog.text
    torch._dynamo.reset()


@pytest.mark.parametrize("changes", [dict(per_channel=True), dict(gray_method="average")])
def test_steps_without_a_compiled_form_stay_uncompiled(changes: dict[str, Any]) -> None:
    augmentation = every_step(**changes)
    crops, table = crops_and_table(augmentation, 2, 8)
    expected = augmentation(crops, table)
    augmentation.fuse()
    assert torch.equal(augmentation(crops, table), expected)
    assert augmentation._fused is None


def test_images_that_are_not_rgb_stay_uncompiled() -> None:
    augmentation = every_step(channels=1, mean=[0.5], std=[0.25])
    augmentation.fuse()
    crops, table = crops_and_table(augmentation, 2, 8)
    assert augmentation(crops[:, :1], table).shape == (6, 1, 8, 8)
    assert augmentation._fused is None
