"""Initial weights of linear layers and convolutions."""

from __future__ import annotations

from torch import nn


def initialize_linears(network: nn.Module, init: str) -> None:
    """Fill the weights of all linear layers in place, and set their biases to zero.

    `init` is `trunc_normal` (std 0.02, the released code), `xavier` (uniform) or `xavier_centered`: so, with
    the weights of each output less their mean, also those of convolutions, in all layers but the first. What
    follows a ReLU or GELU has inputs of one sign, whose sum is nearly the same for every image; without this
    sum the features of images start apart instead of alike.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            if init == "trunc_normal":
                nn.init.trunc_normal_(module.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    if init == "xavier_centered":
        _, *others = (module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d))
        for module in others:
            weight = module.weight.data
            weight -= weight.flatten(1).mean(1).view(-1, *[1] * (weight.ndim - 1))
