"""A file is loaded completely, or not at all and the error says what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from dino_exp.backbone.library import torchvision_backbone
from dino_exp.backbone.vit import VisionTransformer
from dino_exp.errors import UserError
from dino_exp.weights.load_into import load_into
from dino_exp.weights.networks_in_file import network_at
from tests.weights.tiny_networks import network, tiny_vit

FILE = Path("weights.pth")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_positions_are_resized_by_the_rule_that_trained_weights_expect() -> None:
    """The loaded network is bit-identical to the file's network run at the smaller image size."""
    source = tiny_vit(image_size=56, seed=1)
    loaded = network(tiny_vit(image_size=32))
    report = load_into(loaded, network_at(source.state_dict(), ""), FILE, head=False)
    with torch.no_grad():
        assert torch.equal(loaded.backbone(IMAGES), source(IMAGES))
    assert report.resized == "position embedding resized from 14x14 to 8x8 patches"
    assert report.resized in report.sentence()
    assert report.missing == report.unexpected == []
    assert len(report.matched) == len(source.state_dict())


def test_a_classifier_is_ignored_and_reported() -> None:
    torch.manual_seed(1)
    source = torchvision.models.resnet18()
    backbone = torchvision_backbone(name="resnet18", stem="imagenet", in_channels=3, image_size=32)
    state = network_at(source.state_dict(), "")
    del state["backbone.bn1.num_batches_tracked"]  # as in files of old versions
    report = load_into(network(backbone, width=512), state, FILE, head=False)
    assert report.unexpected == ["backbone.fc.weight", "backbone.fc.bias"]
    assert report.missing == ["backbone.bn1.num_batches_tracked"]
    assert "2 unused (backbone.fc.weight, backbone.fc.bias)" in report.sentence()
    source.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(backbone.eval()(IMAGES), source.eval()(IMAGES))


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key != name}


VIT = {f"backbone.{key}": value for key, value in tiny_vit().state_dict().items()}
with torch.device("meta"):
    SMALL = VisionTransformer(patch_size=8)
WIDE = {f"backbone.{key}": value for key, value in SMALL.state_dict().items()}
HEAD = {key: value for key, value in network(tiny_vit(), out_dim=9).state_dict().items() if "head" in key}


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (
            WIDE,
            r"backbone.cls_token has shape \(1, 1, 384\), the network's \(1, 1, 16\), and 149 more do not "
            "fit; the file contains a vision transformer of width 384 with 12 blocks and patches of 8: set "
            "backbone=vit_small backbone.patch_size=8.",
        ),
        (
            without(VIT, "backbone.norm.weight"),
            "backbone.norm.weight is missing; the file contains a vision transformer of width 16 with 2 ",
        ),
        (
            VIT | {"backbone.blocks.2.norm1.weight": torch.ones(16)},
            "the network has no backbone.blocks.2.norm1.weight",
        ),
        (
            network_at(torchvision.models.resnet18().state_dict(), ""),
            r"no tensor has a name of the backbone's \(cls_token, pos_embed, ...\); the file contains "
            r"122 tensors, the first conv1.weight \(64, 3, 7, 7\): "
            "set backbone=torchvision backbone.name=resnet18.",
        ),
        (
            VIT | HEAD,
            r"head.last_layer.weight_g has shape \(9, 1\), the network's \(12, 1\), and 1 more do not fit; "
            "set head.out_dim=9 head.bottleneck_dim=6 head.layers=3 head.hidden_dim=8, or load only the "
            "backbone with init_parts=backbone.",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_an_error_and_change_nothing(
    state: dict[str, torch.Tensor], error: str
) -> None:
    target = network(tiny_vit())
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(UserError, match=rf"^weights.pth: {error}"):
        load_into(target, state, FILE, head="head.last_layer.weight_v" in state)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())
