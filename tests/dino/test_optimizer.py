"""Parameter groups, clipping, the frozen last layer, and the three optimizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.dino.head import DINOHead
from dino_exp.dino.optimizer import (
    adamw,
    clip_gradients,
    freeze_last_layer,
    in_full_size,
    lars,
    parameter_groups,
    sgd,
)


def small_head() -> DINOHead:
    torch.manual_seed(0)
    return DINOHead(in_dim=3, out_dim=5, hidden_dim=4, bottleneck_dim=2, norm_last_layer=False).double()


def fill_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def test_positions_class_token_and_gain_decay_but_biases_and_norms_do_not() -> None:
    model = nn.ModuleDict(
        {
            "backbone": VisionTransformer(embed_dim=8, depth=1, num_heads=2, image_size=32),
            "head": DINOHead(in_dim=8, out_dim=5, hidden_dim=4, bottleneck_dim=2, norm_last_layer=False),
        }
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    decayed, spared = ([names[p] for p in group["params"]] for group in parameter_groups(model))
    assert sorted(decayed) == sorted(
        [
            "backbone.cls_token",
            "backbone.pos_embed",
            "backbone.patch_embed.proj.weight",
            "backbone.blocks.0.attn.qkv.weight",
            "backbone.blocks.0.attn.proj.weight",
            "backbone.blocks.0.mlp.fc1.weight",
            "backbone.blocks.0.mlp.fc2.weight",
            "head.mlp.0.weight",
            "head.mlp.2.weight",
            "head.mlp.4.weight",
            "head.last_layer.weight_g",
            "head.last_layer.weight_v",
        ]
    )
    assert len(spared) == 14
    assert all(name.endswith(".bias") or ".norm" in name for name in spared)


def test_a_fixed_gain_is_not_optimized() -> None:
    head = DINOHead(in_dim=3, out_dim=5, hidden_dim=4, bottleneck_dim=2, norm_last_layer=True)
    assert sum(len(group["params"]) for group in parameter_groups(head)) == 7


def test_clipping_is_per_tensor_and_returns_the_global_norm() -> None:
    large, small, without = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3))
    large.grad = torch.tensor([0.0, 6.0], dtype=torch.float64)
    small.grad = torch.tensor([2.0, 2.0], dtype=torch.float64)
    norm = clip_gradients([large, small, without], 3.0)
    assert large.grad.tolist() == pytest.approx([0, 6 * 3 / (6 + 1e-6)], abs=1e-14)
    assert small.grad.tolist() == [2, 2]
    assert without.grad is None
    assert norm.item() == pytest.approx(44**0.5, abs=1e-14)


def test_clipping_at_zero_only_returns_the_norm() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    assert clip_gradients([parameter], 0.0).item() == 50
    assert parameter.grad.tolist() == [30, 40]


class Recorder(TorchDispatchMode):
    """The operations that run, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((function.__name__, args))
        return function(*args, **(kwargs or {}))


def on_a_fake_gpu() -> list[nn.Parameter]:
    """A network's parameters with gradients in their layouts, without values."""
    parameters = []
    for size in ((8,), (3, 8), (5, 1), (8, 3, 4, 4), (1, 1, 8)):
        layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
        parameters.append(nn.Parameter(torch.empty(size, device="cuda", memory_format=layout)))
        parameters[-1].grad = torch.empty_like(parameters[-1])
    return parameters


@pytest.mark.parametrize("kind", ["clipping", "lars"])
def test_products_on_a_gpu_are_grouped(kind: str) -> None:
    with FakeTensorMode():
        parameters = on_a_fake_gpu()
        optimizer = lars(params=[{"params": parameters}])
        with Recorder() as recorder:
            if kind == "lars":
                optimizer.step()
            else:
                clip_gradients(parameters, 3.0)
    ((tensors, factors),) = [args for name, args in recorder.seen if name == "_foreach_mul_.List"]
    assert len(tensors) == len(factors) == sum(kind == "clipping" or p.ndim != 1 for p in parameters)
    for tensor, factor in zip(tensors, factors, strict=True):  # what PyTorch asks for
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (factor.shape, factor.stride(), factor.dtype)


def test_factors_in_full_size_multiply_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator) for size in ((5,), (3, 1), (2, 3, 4, 4), (), (1, 7))]
    tensors[2] = tensors[2].contiguous(memory_format=torch.channels_last)
    factors = torch.rand(5, generator=generator)
    for tensor, factor, full in zip(tensors, factors, in_full_size(tensors, factors.unbind()), strict=True):
        assert torch.equal(tensor * full, tensor * factor)
        assert full.stride() == tensor.stride()


@pytest.mark.parametrize("build", [adamw, sgd, lars])
def test_a_frozen_last_layer_neither_moves_nor_decays_and_trains_when_unfrozen(build: Callable) -> None:
    head = small_head()
    optimizer = build(params=parameter_groups(head))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.param_groups[0]["weight_decay"] = 0.4
    start = copy.deepcopy(head.state_dict())
    for step in range(3):
        fill_gradients(head, step)
        if step < 2:
            freeze_last_layer(head)
        optimizer.step()
        for name in ("last_layer.weight_g", "last_layer.weight_v"):
            assert torch.equal(head.state_dict()[name], start[name]) == (step < 2)
        assert not torch.equal(head.state_dict()["mlp.0.weight"], start["mlp.0.weight"])


def test_adamw_equals_its_definition() -> None:
    head = small_head()
    expected = {name: value.detach().clone() for name, value in head.named_parameters()}
    moments = {name: (torch.zeros_like(value), torch.zeros_like(value)) for name, value in expected.items()}
    optimizer = adamw(params=parameter_groups(head))
    for step in range(1, 4):
        fill_gradients(head, step)
        lr, weight_decay = 0.01 * step, 0.04 * step
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.param_groups[0]["weight_decay"] = weight_decay
        for name, parameter in head.named_parameters():
            first, second = moments[name]
            gradient = gradient_of(parameter)
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            if parameter.ndim > 1:
                expected[name].mul_(1 - lr * weight_decay)
            scale = (second / (1 - 0.999**step)).sqrt() + 1e-8
            expected[name].sub_(lr * first / (1 - 0.9**step) / scale)
        optimizer.step()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-12)


def lars_step(parameter: Tensor, gradient: Tensor, velocity: Tensor, lr: float, weight_decay: float) -> None:
    """Make one LARS update as the released code does."""
    if parameter.ndim != 1:
        gradient = gradient + weight_decay * parameter
        if parameter.norm() > 0 and gradient.norm() > 0:
            gradient = gradient * 0.001 * parameter.norm() / gradient.norm()
    velocity.mul_(0.9).add_(gradient)
    parameter.sub_(lr * velocity)


def test_lars_scales_and_decays_only_what_is_not_one_dimensional() -> None:
    head = small_head()
    with torch.no_grad():
        head.get_parameter("mlp.0.weight").zero_()  # with a norm of 0 the step must be neither 0 nor NaN
    expected = {name: value.detach().clone() for name, value in head.named_parameters()}
    velocities = {name: torch.zeros_like(value) for name, value in expected.items()}
    optimizer = lars(params=parameter_groups(head))
    for step in range(3):
        fill_gradients(head, step)
        for group in optimizer.param_groups:
            group["lr"] = 0.3
        optimizer.param_groups[0]["weight_decay"] = 0.1
        for name, parameter in head.named_parameters():
            lars_step(expected[name], gradient_of(parameter), velocities[name], 0.3, 0.1)
        optimizer.step()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=0, atol=1e-12)
