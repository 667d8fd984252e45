"""Maps over an image for any backbone: the class token's attention, or else the norm of its features."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from timm.models.vision_transformer import Attention
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch import Tensor, nn

from dino_exp.backbone.tokens import spatial_features
from dino_exp.errors import UserError
from dino_exp.eval.attention.attend import patch_attention
from dino_exp.eval.features import evaluating
from dino_exp.eval.network_input import network_errors, patch_side
from dino_exp.eval.subject import Subject

ATTENTION, FEATURE_NORM = "attention", "feature norm"


def kind_of(backbone: nn.Module) -> str:
    """Return what `maps` gives for a backbone: ATTENTION, or FEATURE_NORM where there is none."""
    return ATTENTION if hasattr(backbone, "class_attention") or _timm_attention(backbone) else FEATURE_NORM


def maps(subject: Subject, images: Tensor) -> Tensor:
    """Return maps (B, heads, h, w), float32 ≥ 0 on the CPU, of images uint8 (B, C, H, W).

    They are the attention of the last block's class token to the patches. For networks without it, they are
    the norm of the feature at each position, as a single head. Raises UserError if the network cannot take
    the images.
    """
    backbone, (height, width) = subject.backbone, images.shape[-2:]
    normalized = subject.normalized(images)
    with (
        subject.autocast(),
        network_errors(
            f"The network cannot take {len(images)} images of {height}x{width} pixels",
            "; try another attention.image_size, or a smaller batch_size.",
        ),
    ):
        if hasattr(backbone, "class_attention"):
            return patch_attention(backbone, normalized)
        with evaluating(backbone):
            attention = _timm_attention(backbone)
            if attention is not None:
                found = _timm_class_attention(cast(TimmTransformer, backbone), attention, normalized)
            else:
                found = spatial_features(backbone, normalized).float().norm(dim=1, keepdim=True)
        return found.cpu().clone()


def features_by_position(subject: Subject, image: Tensor) -> Tensor:
    """Return the spatial features (D, h, w) of one image uint8 (C, H, W), float32 on the CPU."""
    with evaluating(subject.backbone), subject.autocast():
        found = spatial_features(subject.backbone, subject.normalized(image[None]))[0]
    return found.float().cpu().nan_to_num()  # a network that has diverged is shown too


def map_stride(subject: Subject, side: int) -> int:
    """Return the side in pixels of the patch that one value of a map covers, in square images of `side`.

    Raises UserError if the network does not take such images, or has a single position in them.
    """
    patch = patch_side(subject.backbone)
    if side < patch:
        raise UserError(
            f"attention.image_size = {side}: less than one patch of the network; use at least {patch}."
        )
    side -= side % patch
    found = maps(subject, torch.zeros(1, subject.channels, side, side, dtype=torch.uint8))
    if found.shape[-1] == 1:
        raise UserError(
            f"attention.image_size = {side}: the network has a single position in such images, which makes "
            f"no map; use {4 * side} or more."
        )
    return max(patch, math.ceil(side / found.shape[-1]))


class Principal(NamedTuple):
    """Three directions in feature space, shown as red, green and blue."""

    mean: Tensor
    """(D,)."""
    directions: Tensor
    """(D, 3)."""
    low: Tensor
    """(3,): values that are shown as 0."""
    high: Tensor
    """(3,): values that are shown as 1."""


def principal(features: list[Tensor]) -> Principal:
    """Return the first three principal components of all positions of the images, each (D, h, w)."""
    rows = torch.cat([each.flatten(1).t() for each in features])
    mean = rows.mean(dim=0)
    centered = rows - mean
    directions = torch.linalg.eigh(centered.t() @ centered).eigenvectors.flip(1)[:, :3]
    # The sign of an eigenvector is arbitrary: its largest entry is made positive.
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = directions * largest.sign()
    projected = centered @ directions
    return Principal(mean, directions, projected.quantile(0.01, dim=0), projected.quantile(0.99, dim=0))


def in_colors(features: Tensor, of: Principal) -> Tensor:
    """Return features (D, h, w) as red, green and blue in 0–1, (3, h, w)."""
    projected = (features.flatten(1).t() - of.mean) @ of.directions
    shares = ((projected - of.low) / (of.high - of.low).clamp(min=1e-12)).clamp(0, 1)
    return shares.t().unflatten(1, features.shape[1:])


def _timm_attention(backbone: nn.Module) -> Attention | None:
    """Return the last block's attention layer if it is softmax(q·k·scale)·v over class token and patches.

    Other kinds in timm (rotary positions, relative biases) have other classes.
    """
    if not isinstance(backbone, TimmTransformer) or backbone.cls_token is None:
        return None
    attention = getattr(backbone.blocks[-1], "attn", None)
    return attention if type(attention) is Attention else None


def _timm_class_attention(backbone: TimmTransformer, attention: Attention, images: Tensor) -> Tensor:
    """Return the class token's attention to the patches, without that to itself and to registers."""
    captured: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        captured[:] = inputs[:1]

    hook = attention.register_forward_pre_hook(keep)
    try:
        backbone.forward_features(images)
    finally:
        hook.remove()
    heads = attention.num_heads
    query, key, _ = attention.qkv(captured[0]).chunk(3, dim=-1)
    query, key = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (query[:, :1], key))
    query, key = attention.q_norm(query), attention.k_norm(key)
    weights = ((query * attention.scale) @ key.transpose(-2, -1)).float().softmax(dim=-1)
    height, width = backbone.patch_embed.patch_size
    grid = images.shape[-2] // height, images.shape[-1] // width
    return weights[:, :, 0, backbone.num_prefix_tokens :].unflatten(2, grid)
