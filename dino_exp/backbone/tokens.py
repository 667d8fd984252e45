"""What backbones know besides their feature: tokens of the last blocks, and features by place."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.errors import UserError


class Tokens(NamedTuple):
    """Of one block, after the final norm."""

    class_token: Tensor
    """(B, D)."""
    patches: Tensor
    """(B, h*w, D), rows of the image one after the other."""


def block_tokens(backbone: nn.Module, images: Tensor, n: int) -> list[Tokens] | None:
    """Tokens of the last `n` blocks, or of all where there are fewer, first to last.

    None for networks that are no transformers with a class token. The final norm is applied to each block, as
    the released linear evaluation does. timm's transformers may have registers, which are left out.
    """
    if isinstance(backbone, VisionTransformer):
        n = min(n, len(backbone.blocks))
        return [Tokens(each[:, 0], each[:, 1:]) for each in backbone.intermediate_tokens(images, n)]
    blocks = getattr(backbone, "blocks", None)
    layers = getattr(backbone, "get_intermediate_layers", None)
    if (
        layers is None
        or getattr(backbone, "cls_token", None) is None
        or not isinstance(blocks, nn.Sequential)
    ):
        return None
    found = layers(images, min(n, len(blocks)), return_prefix_tokens=True, norm=True)
    return [Tokens(prefix[:, 0], patches) for patches, prefix in found]


def has_block_tokens(backbone: nn.Module) -> bool:
    """Whether `block_tokens` gives something."""
    if isinstance(backbone, VisionTransformer):
        return True
    return (
        hasattr(backbone, "get_intermediate_layers")
        and getattr(backbone, "cls_token", None) is not None
        and isinstance(getattr(backbone, "blocks", None), nn.Sequential)
    )


def spatial_features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features by place, (B, C, H, W) -> (B, D, h, w).

    Of a vision transformer the patch tokens of the last block after the final norm, of other timm models what
    their `forward_intermediates` gives last, and else the last output of a layer that is still an image.
    Raises UserError where there is none.
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
        raise UserError(f"{type(backbone).__name__}: no layer of it gives features by place.")
    return found[0]
