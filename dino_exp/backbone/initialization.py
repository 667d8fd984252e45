"""Initial weights of linear layers."""

from __future__ import annotations

from torch import nn


def initialize_linears(network: nn.Module, init: str) -> None:
    """Fill the weights of all linear layers in place, and set their biases to zero.

    `init` is `trunc_normal` (std 0.02, the released code) or `xavier` (uniform).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            if init == "xavier":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
