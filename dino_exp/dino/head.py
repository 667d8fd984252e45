"""Projection head: MLP, L2 normalization, weight-normalized prototypes (section 3.1 and appendix C)."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_exp.backbone.initialization import initialize_linears


class HeadOutput(NamedTuple):
    """The head's output for N features."""

    bottleneck: Tensor
    """(N, bottleneck_dim), rows of unit length, float32 at least: the input of the prototypes."""
    logits: Tensor
    """(N, K), one score per prototype."""


class WeightNormLinear(nn.Module):
    """Bias-free linear layer whose rows are `weight_g · weight_v / |weight_v|` (Salimans and Kingma 2016).

    Has the math and the state-dict names of `torch.nn.utils.weight_norm`, the deprecated hook of the released
    code, but plain parameters, which can be deep-copied. The gain `weight_g` (out_features, 1) starts at 1,
    the direction `weight_v` (out_features, in_features) as a linear layer's default initialization.
    """

    def __init__(self, in_features: int, out_features: int, *, train_gain: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=train_gain)
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_features) -> (N, out_features)."""
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class DINOHead(nn.Module):
    """MLP with GELU to a bottleneck, L2 normalization, then K = `out_dim` weight-normalized prototypes.

    With the gain of the prototypes fixed at 1 (`norm_last_layer`), logits are cosines. With `use_bn`, batch
    norm is between each hidden linear layer and its GELU. `init` is for the linear layers of the MLP.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        use_bn: bool = False,
        norm_last_layer: bool = True,
        init: str = "trunc_normal",
    ) -> None:
        super().__init__()
        self.mlp = mlp([in_dim] + [hidden_dim] * (layers - 1) + [bottleneck_dim], use_bn)
        initialize_linears(self.mlp, init)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, train_gain=not norm_last_layer)

    def forward(self, features: Tensor) -> HeadOutput:
        """Return bottleneck and logits of features (N, in_dim)."""
        x = self.mlp(features)
        # in float16 the eps of the normalization, 1e-12, would be 0
        bottleneck = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
        return HeadOutput(bottleneck, self.last_layer(bottleneck))


def mlp(widths: list[int], use_bn: bool) -> nn.Module:
    """Return linear layers of the given widths with GELU between them; a bare linear layer for two widths."""
    last = nn.Linear(widths[-2], widths[-1])
    if len(widths) == 2:
        return last  # the released code's names: `mlp.weight`, not `mlp.0.weight`
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(widths[:-1]):
        layers.append(nn.Linear(width, next_width))
        if use_bn:
            layers.append(nn.BatchNorm1d(next_width))
        layers.append(nn.GELU())
    return nn.Sequential(*layers, last)
