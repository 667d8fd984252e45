"""Random numbers of a forward pass are noticed, whatever draws them, and a library's teacher draws none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from dino_exp.backbone.library import timm_backbone
from dino_exp.backbone.randomness import random_operations
from dino_exp.errors import UserError


class Layer(nn.Module):
    """A layer that computes `function` of its input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def attention(rate: float) -> Layer:
    return Layer(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=rate))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "random",
    [
        nn.Dropout(0.1),
        DropPath(0.1),
        attention(0.1),
        Layer(lambda x: x * torch.rand(2, 1, 1, 1)),
        Layer(lambda x: x[:, :, torch.randperm(8)]),
        Layer(lambda x: x + torch.empty_like(x).normal_()),
        nn.RReLU(),
    ],
)
def test_what_draws_random_numbers_is_noticed_and_leaves_no_trace(random: nn.Module, device: str) -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), random).to(device)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    with torch.device(device):
        assert random_operations(network, torch.ones(2, 3, 8, 8)) != []
    assert torch.equal(torch.get_rng_state(), state)
    assert device == "meta" or all(torch.equal(network.state_dict()[name], before[name]) for name in before)


def test_rates_of_zero_draw_nothing() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.0), DropPath(0.0), attention(0.0))
    for device in ("cpu", "meta"):
        with torch.device(device):
            assert random_operations(network.to(device), torch.ones(2, 3, 8, 8)) == []


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ghostnet_050", 64),  # a rate that the forward pass gives to a function
        ("rexnet_100", 64),
        ("legacy_seresnet18", 64),
        ("cpubone_nano", 64),  # within its blocks
        ("coatnet_rmlp_nano_rw_224", 64),  # in the network of its positions
        ("nextvit_small", 64),  # stochastic depth unless told otherwise
    ],
)
def test_a_teacher_of_timm_gives_equal_features_twice_whatever_timm_builds_in(name: str, size: int) -> None:
    teacher = timm_backbone(name=name, drop_path_rate=0.0, in_channels=3, image_size=size).train()
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(teacher(images), teacher(images))
    with torch.device("meta"):
        assert random_operations(teacher.to("meta"), torch.empty(2, 3, size, size)) == []


@pytest.mark.parametrize("name", ["cpubone_nano", "coatnet_rmlp_nano_rw_224", "nextvit_small", "resnet10t"])
def test_a_student_of_timm_has_stochastic_depth_of_the_given_rate_and_no_dropout(name: str) -> None:
    with torch.device("meta"):
        student = timm_backbone(name=name, drop_path_rate=0.3, in_channels=3, image_size=64)
        drawn = random_operations(student, torch.empty(2, 3, 64, 64))
    paths = [module.drop_prob for module in student.modules() if isinstance(module, DropPath)]
    assert max(paths) == pytest.approx(0.3)
    assert 0 < len(drawn) <= len(paths)
    assert {module.p for module in student.modules() if isinstance(module, nn.Dropout)} <= {0.0}


def test_stochastic_depth_that_a_model_ignores_is_refused() -> None:
    with pytest.raises(UserError, match=r"drop_path_rate = 0.1: ghostnet_050 has no stochastic depth"):
        timm_backbone(name="ghostnet_050", drop_path_rate=0.1, in_channels=3, image_size=64)
