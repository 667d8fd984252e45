"""Descriptions of the network that a file's tensors belong to, and the options that build it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

RELEASED_VITS = {192: "vit_tiny", 384: "vit_small", 768: "vit_base"}
"""Our `backbone` options by width; all have twelve blocks."""


def describe_backbone(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return in words what the tensors `backbone.*` are, and the options that build it; empty if unknown."""
    patches = state.get("backbone.patch_embed.proj.weight")
    positions = state.get("backbone.pos_embed")
    if patches is not None and positions is not None and patches.ndim == 4 and positions.ndim == 3:
        width, patch = positions.shape[2], patches.shape[-1]
        blocks = filter(None, (re.match(r"backbone\.blocks\.(\d{1,4})\.", key) for key in state))
        depth = 1 + max((int(block[1]) for block in blocks), default=-1)
        kind = "transformer with a convolutional stem" if patch == 1 else "vision transformer"
        words = f"a {kind} of width {width} with {depth} blocks"
        if patch == 1:
            return words, ""
        name = RELEASED_VITS.get(width) if depth == 12 else None
        options = f"backbone={name} backbone.patch_size={patch}" if name else ""
        return f"{words} and patches of {patch}", options
    first = next((key for key in state if key.startswith("backbone.")), None)
    if first is None:
        return "no backbone", ""
    return f"{len(state)} tensors, the first {first.partition('.')[2]} {tuple(state[first].shape)}", ""


def head_options(state: Mapping[str, Tensor]) -> str:
    """Return the options that build the head of the tensors `head.*`; empty if they are not a DINO head."""
    gain, direction = state.get("head.last_layer.weight_g"), state.get("head.last_layer.weight_v")
    if gain is None or direction is None or direction.ndim != 2:
        return ""
    weights = [value for key, value in state.items() if re.match(r"head\.mlp\.(\d+\.)?weight$", key)]
    linears = [weight for weight in weights if weight.ndim == 2]
    options: dict[str, int | str] = {
        "out_dim": len(gain),
        "bottleneck_dim": direction.shape[1],
        "layers": len(linears),
    }
    if len(linears) > 1:
        options["hidden_dim"] = len(linears[0])
    if any(key.endswith(".running_mean") for key in state if key.startswith("head.")):
        options["use_bn"] = "true"
    return " ".join(f"head.{key}={value}" for key, value in options.items())
