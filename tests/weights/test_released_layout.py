"""Conversion from the released code's full checkpoints and back changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.xcit import checkpoint_filter_fn
from torch import nn

from dino_exp.weights.load_into import load_into
from dino_exp.weights.read_weights import read_weights
from dino_exp.weights.released_layout import our_names, released_layout, released_names
from tests.weights.tiny_networks import network, released_checkpoint, tiny_vit


def assert_same(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs)
    for key in theirs:
        assert ours[key].shape == theirs[key].shape, key
        assert torch.equal(ours[key], theirs[key]), key


@pytest.mark.parametrize("use_bn", [False, True])
def test_released_to_ours_to_released_is_bit_identical(tmp_path: Path, use_bn: bool) -> None:
    released = released_checkpoint(use_bn=use_bn)
    torch.save(released, tmp_path / "checkpoint.pth")
    weights = read_weights(tmp_path / "checkpoint.pth", tiny_vit().state_dict())
    assert weights.student is not None
    assert weights.center is not None
    student, teacher = (network(tiny_vit(), use_bn=use_bn) for _ in range(2))
    load_into(student, weights.student, weights.file, head=True)
    load_into(teacher, weights.teacher, weights.file, head=True)

    states = student.state_dict(), teacher.state_dict()
    back = released_layout(*states, weights.center, epoch=7, args={"arch": "vit_tiny"})
    assert all(key.startswith("module.") for key in back["student"])
    assert all(key.startswith("module.") == use_bn for key in back["teacher"])
    assert {"module.head.last_layer.weight_g", "module.head.last_layer.weight_v"} <= back["student"].keys()
    assert_same(back["student"], released["student"])
    assert_same(back["teacher"], released["teacher"])
    assert_same(back["dino_loss"], released["dino_loss"])
    assert (back["epoch"], back["args"].arch) == (7, "vit_tiny")


def test_timm_reads_the_released_names_of_xcit_which_has_one_qkv_layer_in_class_attention() -> None:
    torch.manual_seed(0)
    model = timm.create_model("xcit_nano_12_p16_224", num_classes=0)
    ours = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    released = released_names(ours, wrapped=False)
    assert "backbone.pos_embeder.token_projection.weight" in released
    assert released["backbone.cls_attn_blocks.1.attn.qkv.weight"].shape == (384, 128)
    assert not any(".attn.q." in key for key in released)
    filtered = checkpoint_filter_fn(
        {key.removeprefix("backbone."): value for key, value in released.items()}, model
    )
    assert model.load_state_dict(filtered, strict=True)
    assert all(torch.equal(model.state_dict()[key.removeprefix("backbone.")], ours[key]) for key in ours)
    back = our_names(released)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)


def test_the_names_of_the_newer_weight_norm_are_converted() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 12, bias=False))
    state = {f"module.head.last_layer.{key}": value for key, value in layer.state_dict().items()}
    ours = our_names(state)
    assert ours["module.head.last_layer.weight_g"].shape == (12, 1)
    assert ours["module.head.last_layer.weight_v"].shape == (12, 6)
