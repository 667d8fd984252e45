"""The projection head: the released code's names, initialization and math."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dino_exp.dino.head import DINOHead


def small_head(**changes: Any) -> DINOHead:
    torch.manual_seed(0)
    return DINOHead(**{"in_dim": 6, "out_dim": 10, "hidden_dim": 12, "bottleneck_dim": 4, **changes})


@pytest.mark.parametrize(
    ("layers", "use_bn", "mlp_weights"),
    [
        (3, False, ["mlp.0.weight", "mlp.2.weight", "mlp.4.weight"]),
        (3, True, ["mlp.0.weight", "mlp.1.weight", "mlp.3.weight", "mlp.4.weight", "mlp.6.weight"]),
        (2, False, ["mlp.0.weight", "mlp.2.weight"]),
        (1, True, ["mlp.weight"]),
    ],
)
def test_state_dict_has_the_released_names(layers: int, use_bn: bool, mlp_weights: list[str]) -> None:
    state = small_head(layers=layers, use_bn=use_bn).state_dict()
    assert [key for key in state if key.endswith(".weight")] == mlp_weights
    assert state["last_layer.weight_g"].shape == (10, 1)
    assert state["last_layer.weight_v"].shape == (10, 4)
    assert not any(key.startswith("last_layer") for key in state if not key.endswith(("_g", "_v")))


def test_batch_norm_sits_between_linear_and_gelu() -> None:
    mlp = small_head(use_bn=True).mlp
    assert isinstance(mlp, nn.Sequential)
    kinds = [type(module).__name__ for module in mlp]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]


def test_logits_and_gradients_equal_the_deprecated_weight_norm_hook() -> None:
    head = small_head(norm_last_layer=False).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooked = nn.utils.weight_norm(nn.Linear(4, 10, bias=False)).double()
    hooked.load_state_dict(head.last_layer.state_dict())
    with torch.no_grad():
        for gain in (head.last_layer.weight_g, hooked.get_parameter("weight_g")):
            gain.copy_(torch.linspace(0.5, 2, 10).unsqueeze(1))
    features = torch.randn(7, 6, dtype=torch.float64)
    output = head(features)
    expected = hooked(F.normalize(head.mlp(features), dim=-1, p=2))
    torch.testing.assert_close(output.logits, expected, rtol=0, atol=1e-12)
    output.logits.square().sum().backward()
    expected.square().sum().backward()
    for name in ("weight_g", "weight_v"):
        ours, theirs = getattr(head.last_layer, name).grad, getattr(hooked, name).grad
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_logits_are_cosines_with_the_prototypes() -> None:
    head = small_head().double()
    output = head(torch.randn(7, 6, dtype=torch.float64))
    torch.testing.assert_close(output.bottleneck.norm(dim=1), torch.ones(7, dtype=torch.float64))
    cosines = output.bottleneck @ F.normalize(head.last_layer.weight_v, dim=1).T
    torch.testing.assert_close(output.logits, cosines, rtol=0, atol=1e-12)


def test_norm_last_layer_only_decides_whether_the_gain_is_trained() -> None:
    fixed, trained = small_head(norm_last_layer=True), small_head(norm_last_layer=False)
    assert not fixed.last_layer.weight_g.requires_grad
    assert trained.last_layer.weight_g.requires_grad
    features = torch.randn(3, 6)
    assert torch.equal(fixed(features).logits, trained(features).logits)


def test_a_deep_copy_is_independent() -> None:
    head = small_head()
    twin = copy.deepcopy(head)
    features = torch.randn(3, 6)
    assert torch.equal(twin(features).logits, head(features).logits)
    with torch.no_grad():
        head.last_layer.weight_v.neg_()
    assert torch.equal(twin(features).logits, -head(features).logits)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    head = DINOHead(in_dim=384, out_dim=1000)
    for number in (0, 2, 4):
        weight, bias = (head.get_parameter(f"mlp.{number}.{name}") for name in ("weight", "bias"))
        assert weight.std().item() == pytest.approx(0.02, rel=0.01)
        assert bias.abs().max() == 0
    assert torch.equal(head.last_layer.weight_g, torch.ones(1000, 1))
    # a linear layer's default: uniform within 1 / sqrt(inputs)
    direction = head.last_layer.weight_v
    assert direction.abs().max().item() == pytest.approx(1 / 16, rel=1e-3)
    assert direction.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.01)
    centered = DINOHead(in_dim=384, out_dim=10, init="xavier_centered")
    assert centered.get_parameter("mlp.2.weight").mean(1).abs().max() < 1e-6
    assert centered.get_parameter("mlp.0.weight").mean(1).abs().max() > 1e-4
    xavier = DINOHead(in_dim=384, out_dim=10, init="xavier").get_parameter("mlp.0.weight")
    assert xavier.abs().max().item() == pytest.approx((6 / (384 + 2048)) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tiny_features_are_normalized_in_float32_under_autocast(dtype: torch.dtype) -> None:
    head = small_head()
    with torch.no_grad():
        head.get_parameter("mlp.4.weight").mul_(1e-2)
    with torch.autocast("cpu", dtype):
        before = head.mlp(torch.randn(5, 6))
        output = head(torch.randn(5, 6))
    assert before.dtype == dtype
    assert before.norm(dim=1).max() < 1e-3
    assert output.bottleneck.dtype == torch.float32
    torch.testing.assert_close(output.bottleneck.norm(dim=1), torch.ones(5), rtol=0, atol=1e-5)
    assert output.logits.dtype == dtype
