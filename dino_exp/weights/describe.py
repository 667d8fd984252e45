"""Descriptions of the network that a file's tensors belong to, and the options that build it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.weights.networks_in_file import UNUSED, is_the_network

SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}
"""Names of vision transformers by width."""
OURS = {"tiny": 3, "small": 6, "base": 12}
"""Number of heads of our `backbone=vit_*` options, which have twelve blocks."""
LAYOUTS = {
    r"\.attention\.(attention\.)?(query|q_proj)\.": "Hugging Face's transformers",
    r"^backbone\.\d+\.": "an nn.Sequential, which are numbers",
}
"""Patterns of names in other layouts, and whose they are."""


def describe_backbone(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return in words what the tensors `backbone.*` are, and the options that build it; empty if unknown."""
    own = {
        key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")
    }
    patches, token = own.get("patch_embed.proj.weight"), own.get("cls_token")
    if patches is not None and token is not None and patches.ndim == 4 and token.ndim == 3:
        width, patch = token.shape[2], patches.shape[-1]
        blocks = filter(None, (re.match(r"blocks\.(\d{1,4})\.", key) for key in own))
        depth = 1 + max((int(block[1]) for block in blocks), default=-1)
        kind = "transformer with a convolutional stem" if patch == 1 else "vision transformer"
        parts = [f"{depth} blocks"] if patch == 1 else [f"{depth} blocks", f"patches of {patch}"]
        if "blocks.0.ls1.gamma" in own:
            parts.append("layer scale")
        registers = own.get("reg_token")
        if registers is not None and registers.ndim == 3:
            parts.append(f"{registers.shape[1]} registers")
        words = (
            f"a {kind} of width {width} with {', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]}"
        )
        return words, "" if patch == 1 else _options(own)
    if not own:
        return "no backbone", ""
    first = next(iter(own))
    return f"{len(own)} tensors, the first {first} {tuple(own[first].shape)}", _options(own)


def other_layout(names: Iterable[str]) -> str:
    """Return what to do with layers that have other names than the libraries'; empty if unknown."""
    for pattern, whose in LAYOUTS.items():
        if any(re.search(pattern, name) for name in names):
            return f"its layers have the names of {whose}; convert them to those of timm or torchvision first"
    return ""


def _options(own: Mapping[str, Tensor]) -> str:
    """Return the options of a network with exactly these tensors; empty if no usual one has them."""
    for options, build in _usual_networks(own):
        try:
            with torch.device("meta"):
                state = build().state_dict()
        except Exception:  # what cannot be built is not advised
            continue
        if is_the_network(own, {name: state[name] for name in state if not name.startswith(UNUSED)}):
            return options
    return ""


def _usual_networks(own: Mapping[str, Tensor]) -> Iterator[tuple[str, Any]]:
    """Yield the options of networks that may have such tensors, and a function that builds each."""
    import timm  # late: these libraries take seconds, and files that fit need none of this
    import torchvision

    from dino_exp.backbone.library import timm_backbone

    patches, token = own.get("patch_embed.proj.weight"), own.get("cls_token")
    if patches is not None and token is not None:
        width, channels, patch = token.shape[2], patches.shape[1], patches.shape[-1]
        size = SIZES.get(width)
        sides: dict[str, Any] = {"in_channels": channels, "image_size": 4 * patch}
        if size in OURS:
            vit = partial(VisionTransformer, embed_dim=width, num_heads=OURS[size], patch_size=patch, **sides)
            yield f"backbone=vit_{size} backbone.patch_size={patch}", vit
        names = (
            f"{start}_{size}_patch{patch}_{end}"
            for start, end in (("vit", "224"), ("vit", "dinov2"), ("vit", "reg4_dinov2"), ("deit3", "224"))
        )
        for name in filter(timm.is_model, names):
            crops = ", with crops.global_size and crops.local_size multiples of 14" if patch == 14 else ""
            build = partial(timm_backbone, name=name, drop_path_rate=0.0, **sides)
            yield f"backbone=timm backbone.name={name}{crops}", build
    elif "conv1.weight" in own:
        for name in torchvision.models.list_models(module=torchvision.models, include="*res*ne*t*"):
            build = partial(torchvision.models.get_model, name)
            yield f"backbone=torchvision backbone.name={name}", build


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
