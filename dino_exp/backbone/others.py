"""Other people's networks as backbones: any module that returns one vector per image."""

from __future__ import annotations

from typing import Any

from torch import nn

from dino_exp.backbone.image_size import output_dim
from dino_exp.errors import UserError


def as_backbone(network: Any, *, name: str, in_channels: int, image_size: int) -> nn.Module:
    """Return a network with `feature_dim`, the length of its vectors, which one pass of two images tells.

    Args:
        network: maps images (B, in_channels, S, S) to features (B, feature_dim), for all sizes of crops.
        name: `backbone.name`.
        in_channels: channels of an image.
        image_size: side of a global crop in pixels.

    Raises UserError for what cannot be a backbone.
    """
    if not isinstance(network, nn.Module):
        raise UserError(f"returns {type(network).__name__}; it must return a torch.nn.Module.")
    if next(network.parameters(), None) is None:
        raise UserError("returns a network without parameters, which cannot be trained.")
    dim = output_dim(network, name=name, in_channels=in_channels, size=image_size)
    claimed = getattr(network, "feature_dim", dim)
    if claimed != dim:
        raise UserError(f"its feature_dim is {claimed}, and its features have {dim} numbers.")
    network.feature_dim = dim  # type: ignore[assignment]  # a plain attribute
    return network
