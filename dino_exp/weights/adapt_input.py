"""`init_adapt`: weights of a network for other input channels or patches than the file's.

Channels follow timm: the file's channels are repeated in order, as often as needed, and multiplied by their
number before / after, so that the sum over all channels keeps its size; for a single channel they are summed.
Patches follow FlexiViT (Beyer et al. 2023), as in timm: the weights that give, for patches resized to the new
size, the old outputs, by the pseudo-inverse of the bicubic resize. They are exactly those for larger patches,
and the nearest ones for smaller patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dino_exp.weights.released_layout import State

CHANNELS, PATCH = "channels", "patch"
"""What `init_adapt` may name."""


@dataclass(frozen=True)
class Adaptation:
    """What may be adapted of a backbone's input."""

    channels: int
    """Channels of the run's images."""
    allowed: frozenset[str] = frozenset()
    """Of `CHANNELS` and `PATCH`."""


def input_convolutions(backbone: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions that see the image, by the names of their weights in the backbone's tensors."""
    convolutions = {name: each for name, each in backbone.named_modules() if isinstance(each, nn.Conv2d)}
    known = (getattr(backbone, "pretrained_cfg", None) or {}).get("first_conv") or ()  # timm's models
    names = [name for name in ((known,) if isinstance(known, str) else known) if name in convolutions]
    return {f"{name}.weight": convolutions[name] for name in names or list(convolutions)[:1]}


def needed(state: Mapping[str, Tensor], backbone: nn.Module, channels: int) -> dict[str, dict[str, str]]:
    """Return what can be adapted and would have to be, by the name of the weights.

    Args:
        state: a file's tensors under our names, `backbone.*`.
        backbone: the network that they are for.
        channels: of the images.

    Returns:
        For each of `CHANNELS` and `PATCH` the change in words, for example "3 -> 10 channels".
    """
    result: dict[str, dict[str, str]] = {}
    for name, convolution in input_convolutions(backbone).items():
        stored, wanted = state.get(f"backbone.{name}"), convolution.weight
        if stored is None or stored.ndim != 4 or len(stored) != len(wanted) or not stored.numel():
            continue
        (before, *sides), (after, *wanted_sides) = stored.shape[1:], wanted.shape[1:]
        changes = {}
        if before != after and after == channels:  # some networks rearrange pixels as channels
            changes[CHANNELS] = f"{before} -> {after} channels"
        is_patch = convolution.kernel_size == convolution.stride and wanted_sides[0] == wanted_sides[1]
        if sides != wanted_sides and is_patch and sides[0] == sides[1]:
            changes[PATCH] = f"{sides[0]} -> {wanted_sides[0]} pixels"
        elif sides != wanted_sides:
            changes = {}  # another kernel
        if changes:
            result[name] = changes
    return result


def adapt_input(
    state: Mapping[str, Tensor], backbone: nn.Module, adaptation: Adaptation
) -> tuple[State, list[str]]:
    """Return a file's tensors with the input's weights as the backbone needs them, and each change in words.

    Nothing is adapted where more would have to be than is allowed.
    """
    result, words = dict(state), []
    for name, changes in needed(state, backbone, adaptation.channels).items():
        if not changes.keys() <= adaptation.allowed:
            continue
        stored, wanted = result[f"backbone.{name}"], backbone.get_parameter(name)
        weight = stored.to(torch.promote_types(stored.dtype, torch.float32))
        rules = {}
        if CHANNELS in changes:
            weight, rules[CHANNELS] = _with_channels(weight, wanted.shape[1])
        if PATCH in changes:
            from timm.layers import resample_patch_embed  # timm takes a fifth of a run's start

            weight = resample_patch_embed(weight, list(wanted.shape[2:]))
            rules[PATCH] = "pseudo-inverse resize"
        result[f"backbone.{name}"] = weight
        done = ", ".join(f"{change} ({rules[kind]})" for kind, change in changes.items())
        words.append(f"{name.removesuffix('.weight')}: {done}")
    return result, words


def _with_channels(weight: Tensor, channels: int) -> tuple[Tensor, str]:
    """Return the weights (D, C, h, w) of a convolution for another number of channels, and how in words."""
    before = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True), "summed"
    repeated = weight.repeat(1, -(-channels // before), 1, 1)[:, :channels]
    how = "repeated" if channels > before else f"the first {channels}"
    return repeated * (before / channels), f"{how}, times {before}/{channels}"
