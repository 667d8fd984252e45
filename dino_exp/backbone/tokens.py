"""Outputs of backbones other than the feature vector: tokens of the last blocks, and feature maps."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.errors import UserError


class Tokens(NamedTuple):
    """Tokens of one transformer block, after the final norm."""

    class_token: Tensor
    """(B, D)."""
    patches: Tensor
    """(B, h*w, D), row by row of the image."""


def block_tokens(backbone: nn.Module, images: Tensor, n: int) -> list[Tokens] | None:
    """Return the tokens of the last `n` blocks, or of all if there are fewer, first to last.

    None for networks other than transformers with a class token. The final norm is applied to each block, as
    in the released linear evaluation. Registers, which some of timm's transformers have, are dropped.
    """
    if isinstance(backbone, VisionTransformer):
        n = min(n, len(backbone.blocks))
        return [Tokens(each[:, 0], each[:, 1:]) for each in backbone.intermediate_tokens(images, n)]
    if not has_block_tokens(backbone):
        return None
    timm_vit = cast(Any, backbone)
    n = min(n, len(timm_vit.blocks))
    found = timm_vit.get_intermediate_layers(images, n, return_prefix_tokens=True, norm=True)
    return [Tokens(prefix[:, 0], patches) for patches, prefix in found]


def has_block_tokens(backbone: nn.Module) -> bool:
    """Return whether `block_tokens` returns tokens for this backbone."""
    if isinstance(backbone, VisionTransformer):
        return True
    return (
        hasattr(backbone, "get_intermediate_layers")
        and getattr(backbone, "cls_token", None) is not None
        and isinstance(getattr(backbone, "blocks", None), nn.Sequential)
    )


def spatial_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return a feature map, (B, C, H, W) -> (B, D, h, w).

    For vision transformers these are the patch tokens of the last block after the final norm, for other timm
    models the last output of `forward_intermediates`, and else the last layer's output with height and width.
    Raises `UserError` if there is none.
    """
    if isinstance(backbone, VisionTransformer):
        grid = tuple(side // backbone.patch_size for side in images.shape[-2:])
        patches = backbone.intermediate_tokens(images, 1)[0][:, 1:]
        return patches.transpose(1, 2).unflatten(2, grid)
    if hasattr(backbone, "forward_intermediates"):
        with_norm = {"norm": True} if has_block_tokens(backbone) else {}
        forward = cast(Any, backbone).forward_intermediates
        return forward(images, indices=1, intermediates_only=True, output_fmt="NCHW", **with_norm)[-1]
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[-2] * output.shape[-1] > 1:
            found[:] = [output]

    hooks = [module.register_forward_hook(keep) for module in backbone.modules()]
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise UserError(f"{type(backbone).__name__}: none of its layers returns a feature map.")
    return found[0]
