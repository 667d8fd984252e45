"""timm and torchvision backbones: any crop size, the right feature, and errors with a fix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from dino_exp.backbone.image_size import check_image_sizes
from dino_exp.backbone.library import small_resnet, timm_backbone, torchvision_backbone
from dino_exp.errors import UserError


def features(model: nn.Module, size: int, channels: int = 3) -> torch.Tensor:
    """Return features in train mode, as student and teacher compute them."""
    torch.manual_seed(1)
    return model.train()(torch.randn(3, channels, size, size))


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("xcit_nano_12_p16_224", 128),
        ("convnext_atto", 320),
        ("vit_tiny_patch16_224", 192),
        ("swin_tiny_patch4_window7_224", 768),
        ("mobilenetv3_small_050", 1024),
    ],
)
def test_timm_models_take_both_crop_sizes(name: str, dim: int) -> None:
    model = timm_backbone(name=name, drop_path_rate=0.0, in_channels=1, image_size=64)
    check_image_sizes(model, name=name, in_channels=1, sizes=(64, 32))
    assert model.feature_dim == dim
    for size in (64, 32):
        assert features(model, size, channels=1).shape == (3, dim)
    # like a teacher's: neither dropout nor stochastic depth, which Swin has by default
    assert torch.equal(features(model, 32, channels=1), features(model, 32, channels=1))


def test_timm_students_have_stochastic_depth() -> None:
    model = timm_backbone(name="convnext_atto", drop_path_rate=0.5, in_channels=3, image_size=32)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit_smal_patch16_224"}, "no such timm model; did you mean vit_small_patch16_224"),
        ({"name": "densenet121", "drop_path_rate": 0.1}, "densenet121 has no stochastic depth; set it to 0"),
        ({"name": "maxvit_nano_rw_256", "image_size": 36}, "maxvit_nano_rw_256: cannot take images of 36x36"),
    ],
)
def test_timm_errors_name_key_value_and_fix(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        timm_backbone(**{"drop_path_rate": 0.0, "in_channels": 3, "image_size": 64, **settings})


def test_a_model_for_one_image_size_is_refused_before_training() -> None:
    model = timm_backbone(name="cait_xxs24_224", drop_path_rate=0.0, in_channels=3, image_size=32)
    check_image_sizes(model, name="cait_xxs24_224", in_channels=3, sizes=[32])
    with pytest.raises(UserError, match=r"cait_xxs24_224: cannot take images of 16x16 pixels \(Input height"):
        check_image_sizes(model, name="cait_xxs24_224", in_channels=3, sizes=[32, 16])


def test_checking_sizes_changes_neither_weights_nor_buffers_nor_random_numbers() -> None:
    model = torchvision_backbone(name="resnet18", stem="small", in_channels=3, image_size=32).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    check_image_sizes(model, name="resnet18", in_channels=3, sizes=[16])
    assert model.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("resnet18", 512),
        ("densenet121", 1024),
        ("mobilenet_v3_small", 1024),
        ("efficientnet_b0", 1280),
        ("squeezenet1_1", 512),
        ("regnet_y_400mf", 440),
        ("googlenet", 1024),
        ("swin_t", 768),
    ],
)
def test_torchvision_models_lose_only_their_last_layer(name: str, dim: int) -> None:
    model = torchvision_backbone(name=name, stem="imagenet", in_channels=4, image_size=64)
    assert model.feature_dim == dim
    assert features(model, 32, channels=4).shape == (3, dim)
    assert not any(module.out_features == 1000 for module in model.modules() if isinstance(module, nn.Linear))
    # some have dropout and stochastic depth built in, which a teacher must not have
    assert torch.equal(features(model, 32, channels=4), features(model, 32, channels=4))


def test_a_new_first_convolution_has_the_standard_deviation_of_the_old() -> None:
    model = torchvision_backbone(name="resnet18", stem="imagenet", in_channels=1, image_size=32)
    first = model.get_submodule("conv1")
    assert isinstance(first, nn.Conv2d)
    assert first.weight.shape == (64, 1, 7, 7)
    assert first.weight.std().item() == pytest.approx((2 / (64 * 7 * 7)) ** 0.5, rel=0.05)
    assert (first.stride, first.padding, first.bias) == ((2, 2), (3, 3), None)


def test_the_small_stem_keeps_the_resolution() -> None:
    model = torchvision_backbone(name="resnet18", stem="small", in_channels=1, image_size=32)
    weight, first = model.get_parameter("conv1.weight"), model.get_submodule("conv1")
    pool = model.get_submodule("maxpool")
    assert weight.shape == (64, 1, 3, 3)
    assert pool(first(torch.zeros(1, 1, 32, 32))).shape == (1, 64, 32, 32)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    assert "fc.weight" not in model.state_dict()
    assert "layer4.1.conv2.weight" in model.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet51"}, "no such torchvision model; did you mean resnet50"),
        ({"name": "vit_b_16"}, "take a single image size.* use backbone=vit_small"),
        ({"name": "mobilenet_v2", "stem": "small"}, "stem = small: only for ResNets"),
    ],
)
def test_torchvision_errors_name_key_value_and_fix(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        torchvision_backbone(**{"stem": "imagenet", "in_channels": 3, "image_size": 32, **settings})


def test_the_small_resnet_halves_three_times_and_takes_any_size() -> None:
    model = small_resnet(width=8, in_channels=2, image_size=32)
    sizes = [32]
    x = torch.zeros(1, 2, 32, 32)
    for layer in model.children():
        x = layer(x)
        if x.ndim == 4 and x.shape[-1] < sizes[-1]:
            sizes.append(x.shape[-1])
    assert sizes == [32, 16, 8, 4, 1]
    assert model.feature_dim == x.shape[1] == 32
    assert features(model, 9, channels=2).shape == (3, 32)
    second = [module for module in model.modules() if isinstance(module, nn.Conv2d)][-2]
    assert second.weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.05)
