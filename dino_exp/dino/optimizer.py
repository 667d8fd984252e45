"""Optimizers, their parameter groups, gradient clipping, and the frozen last layer.

The trainer sets the learning rate of all groups, and the weight decay of the first, before each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def parameter_groups(*models: nn.Module) -> list[dict[str, Any]]:
    """Split the trainable parameters into two groups: with weight decay, and without.

    Biases and one-dimensional tensors (norms) have none. Everything else has it, including position
    embedding, class token and the last layer's gain of shape (K, 1).
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for model in models:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_bias = name.rpartition(".")[2] == "bias"
                (others if is_bias or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": others, "weight_decay": 0.0}]


def adamw(*, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build AdamW (Loshchilov and Hutter 2019) with β = (0.9, 0.999).

    One fused kernel where the device has it: on a CPU 4 to 9 times as fast as a loop over tensors.
    """
    tensors = [parameter for group in params for parameter in group["params"]]
    fused = all(tensor.device.type in ("cpu", "cuda", "mps") for tensor in tensors)
    return torch.optim.AdamW(params, lr=0.0, weight_decay=0.0, fused=fused)


def sgd(*, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build stochastic gradient descent with momentum 0.9.

    Not fused: PyTorch's fused kernel fails at the first step of the last layer after it was frozen, because
    the layer has no momentum yet.
    """
    return torch.optim.SGD(params, lr=0.0, momentum=0.9)


def lars(*, params: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Build LARS with momentum 0.9 and trust coefficient 0.001, for convolutional nets and large batches."""
    return LARS(params)


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017), as in the released code.

    Weight decay and the trust ratio `eta·|w| / |gradient + weight_decay·w|` apply to tensors that are not
    one-dimensional; biases and norms take a plain momentum step.
    """

    def __init__(self, params: Iterable[Any]) -> None:
        super().__init__(params, dict(lr=0.0, weight_decay=0.0, momentum=0.9, eta=0.001))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            plain = [p for p in group["params"] if p.grad is not None and p.ndim == 1]
            scaled = [p for p in group["params"] if p.grad is not None and p.ndim != 1]
            self._move(plain, [p.grad for p in plain], group)
            self._move(scaled, trust_scaled(scaled, [p.grad for p in scaled], group), group)
        return loss

    def _move(self, params: list[Tensor], updates: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        for param in params:
            if "mu" not in self.state[param]:
                self.state[param]["mu"] = torch.zeros_like(param)
        velocities = [self.state[param]["mu"] for param in params]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(params, velocities, alpha=-group["lr"])


def trust_scaled(params: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Return `u · eta·|w| / |u|` for u = gradient + weight_decay·w of each tensor; u where a norm is 0."""
    if not params:
        return []
    updates = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
    weight_norms = torch.stack(torch._foreach_norm(params))
    update_norms = torch.stack(torch._foreach_norm(updates))
    both = (weight_norms > 0) & (update_norms > 0)
    ratios = torch.where(both, group["eta"] * weight_norms / update_norms, 1.0)
    scale_each(updates, ratios)
    return updates


def scale_each(tensors: list[Tensor], factors: Tensor) -> None:
    """Multiply each of n tensors, in place, by its own of the factors (n,).

    In few launches on a GPU, at the cost of a vector as large as all tensors together for that time: PyTorch
    groups products of lists only where the tensors of both have the same sizes and strides.
    """
    own = list(factors.unbind())
    torch._foreach_mul_(tensors, in_full_size(tensors, own) if factors.device.type == "cuda" else own)


def in_full_size(tensors: Sequence[Tensor], scalars: Sequence[Tensor]) -> list[Tensor]:
    """Repeat each scalar to the size and strides of its tensor, all in one vector."""
    sizes = [tensor.numel() for tensor in tensors]
    repeated = torch.cat([scalar.expand(size) for scalar, size in zip(scalars, sizes, strict=True)])
    parts = zip(repeated.split(sizes), tensors, strict=True)
    return [part.as_strided(tensor.size(), tensor.stride()) for part, tensor in parts]


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale each gradient tensor, by itself, down to an L2 norm of `max_norm`; 0 switches clipping off.

    With mixed precision, unscale the gradients first. Parameters without a gradient are skipped. Does not
    wait for the device. Returns the norm of all gradients together before clipping, a scalar on their device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norms = torch.stack(torch._foreach_norm(gradients))
    if max_norm > 0:
        factors = (max_norm / (norms + 1e-6)).clamp_(max=1.0)
        scale_each(gradients, factors)
    return torch.linalg.vector_norm(norms)


def freeze_last_layer(head: nn.Module) -> None:
    """Remove the gradients of `head.last_layer`, so that the optimizer neither moves nor decays it.

    The released code does so in the first epochs, to help training start. Call it after clipping. Gradients
    of zero are not enough: AdamW would still decay the weights.
    """
    for parameter in head.get_submodule("last_layer").parameters():
        parameter.grad = None
