"""Maps over an image of any backbone: its class token's attention, or else how long its features are."""

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
from dino_exp.eval.subject import Subject

ATTENTION, FEATURE_NORM = "attention", "feature norm"


def kind_of(backbone: nn.Module) -> str:
    """ATTENTION where `maps` gives that of the class token in the last block, else FEATURE_NORM."""
    return ATTENTION if hasattr(backbone, "class_attention") or _timm_attention(backbone) else FEATURE_NORM


def maps(subject: Subject, images: Tensor) -> Tensor:
    """Images uint8 (B, C, H, W) -> (B, heads, h, w) float32 on the CPU, none below 0.

    The attention of the last block's class token to the patches; for networks without one the length of the
    feature at each place, as a single head. Raises UserError where the network cannot take the images.
    """
    with subject.autocast():
        return _asked(subject.backbone, subject.normalized(images))


def place_features(subject: Subject, image: Tensor) -> Tensor:
    """Features of one image uint8 (C, H, W) by place, (D, h, w) float32 on the CPU."""
    with evaluating(subject.backbone), subject.autocast():
        found = spatial_features(subject.backbone, subject.normalized(image[None]))[0]
    return found.float().cpu().nan_to_num()  # a network that has diverged is shown too


def place_size(subject: Subject, side: int) -> int:
    """Side in pixels of the patch that one value of a map stands for, in square images of `side`.

    Raises UserError where the network takes no such images, or has but one place in them.
    """
    backbone: Any = subject.backbone
    owner = backbone if hasattr(backbone, "patch_size") else getattr(backbone, "patch_embed", None)
    stated = getattr(owner, "patch_size", 1)
    patch = int(max(stated) if isinstance(stated, (tuple, list)) else stated)
    if side < patch:
        raise UserError(
            f"attention.image_size = {side}: less than one patch of the network, which has {patch} pixels."
        )
    side -= side % patch
    found = maps(subject, torch.zeros(1, subject.channels, side, side, dtype=torch.uint8))
    if found.shape[-1] == 1:
        raise UserError(
            f"attention.image_size = {side}: the network has a single place in such images, so there is no "
            f"map; give {4 * side} or more."
        )
    return max(patch, math.ceil(side / found.shape[-1]))


class Principal(NamedTuple):
    """Three directions of features, for red, green and blue."""

    mean: Tensor
    """(D,)."""
    directions: Tensor
    """(D, 3)."""
    low: Tensor
    """(3,), shown as 0."""
    high: Tensor
    """(3,), shown as 1."""


def principal(features: list[Tensor]) -> Principal:
    """The first three principal components of all places of the images, each (D, h, w)."""
    rows = torch.cat([each.flatten(1).t() for each in features])
    mean = rows.mean(dim=0)
    centered = rows - mean
    directions = torch.linalg.eigh(centered.t() @ centered).eigenvectors.flip(1)[:, :3]
    # an eigenvector's sign is arbitrary: its largest entry shall be positive
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = directions * largest.sign()
    projected = centered @ directions
    return Principal(mean, directions, projected.quantile(0.01, dim=0), projected.quantile(0.99, dim=0))


def in_colors(features: Tensor, of: Principal) -> Tensor:
    """Features (D, h, w) as red, green and blue in 0–1, (3, h, w)."""
    projected = (features.flatten(1).t() - of.mean) @ of.directions
    shares = ((projected - of.low) / (of.high - of.low).clamp(min=1e-12)).clamp(0, 1)
    return shares.t().unflatten(1, features.shape[1:])


def _asked(backbone: nn.Module, images: Tensor) -> Tensor:
    try:
        if hasattr(backbone, "class_attention"):
            return patch_attention(backbone, images)
        with evaluating(backbone):
            attention = _timm_attention(backbone)
            if attention is not None:
                found = _timm_class_attention(cast(TimmTransformer, backbone), attention, images)
            else:
                found = spatial_features(backbone, images).float().norm(dim=1, keepdim=True)
        return found.cpu().clone()
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        height, width = images.shape[-2:]
        raise UserError(
            f"The network cannot take {len(images)} images of {height}x{width} pixels ({reason}); try "
            "another attention.image_size, or a smaller batch_size."
        ) from error


def _timm_attention(backbone: nn.Module) -> Attention | None:
    """Attention of the last block, where it is softmax(q·k·scale)·v over a class token and patches.

    Other kinds in timm (rotary positions, relative biases) have classes of their own.
    """
    if not isinstance(backbone, TimmTransformer) or backbone.cls_token is None:
        return None
    attention = getattr(backbone.blocks[-1], "attn", None)
    return attention if type(attention) is Attention else None


def _timm_class_attention(backbone: TimmTransformer, attention: Attention, images: Tensor) -> Tensor:
    """As the released network's: weights of the class token, whose own and the registers' are left out."""
    entered: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        entered[:] = inputs[:1]

    hook = attention.register_forward_pre_hook(keep)
    try:
        backbone.forward_features(images)
    finally:
        hook.remove()
    heads = attention.num_heads
    query, key, _ = attention.qkv(entered[0]).chunk(3, dim=-1)
    query, key = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (query[:, :1], key))
    query, key = attention.q_norm(query), attention.k_norm(key)
    weights = ((query * attention.scale) @ key.transpose(-2, -1)).float().softmax(dim=-1)
    height, width = backbone.patch_embed.patch_size
    grid = images.shape[-2] // height, images.shape[-1] // width
    return weights[:, :, 0, backbone.num_prefix_tokens :].unflatten(2, grid)
