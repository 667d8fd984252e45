"""`format=timm`: safetensors that `timm.create_model(name, checkpoint_path=...)` loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dino_exp.config.network_schema import TimmConfig, VitConfig
from dino_exp.errors import UserError
from dino_exp.export.trained import Trained, not_exportable

TOLERANCE = 1e-5
"""Largest difference between features, as a share of the largest feature if that is above 1."""
SIZES = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base"}
"""timm's names for (width, number of blocks, number of heads)."""


def write(trained: Trained, network: str, folder: Path) -> str:
    """Write `model.safetensors`, compare its features in timm, and return how to use it, as Markdown.

    Raises:
        UserError: timm cannot build the network, or its features differ.
    """
    backbone, file = trained.backbone(network), folder / "model.safetensors"
    name, options = timm_model(trained, backbone)
    tensors = {key: value.contiguous() for key, value in backbone.state_dict().items()}
    save_file(tensors, file, {"format": "pt"})
    model = timm.create_model(name, checkpoint_path=str(file), **options).eval()
    difference = relative_difference(model, backbone, trained.images())
    if not difference <= TOLERANCE:
        raise UserError(
            f"format = timm: timm's {name} with these weights gives features that differ by {difference:.1e} "
            "of the largest; use format=torchhub or format=onnx."
        )
    other_size = ""
    if "pos_embed" in tensors and trained.kind is VitConfig:
        other_size = (
            " At other image sizes timm resizes the position embedding by another rule, and its features "
            "differ from those of the trained network."
        )
    arguments = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return (
        "```python\n"
        "import timm\n\n"
        f'model = timm.create_model("{name}", checkpoint_path="{file.name}", {arguments}).eval()\n'
        f"features = model(images)  # {trained.shapes()}\n"
        "```\n\n"
        f"On noise, features differ from the trained network's by {difference:.1e} of the largest."
        f"{other_size}"
    )


def timm_model(trained: Trained, backbone: nn.Module) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments for a backbone; raise `UserError` if timm cannot build it."""
    node: Any = trained.cfg.backbone  # its other keys depend on its kind
    channels, size = trained.cfg.data.channels, trained.image_size
    common: dict[str, Any] = {"num_classes": 0} | ({"in_chans": channels} if channels != 3 else {})
    if trained.kind is VitConfig:
        if node.stem != "patch":
            raise not_exportable(f"backbone.stem = {node.stem}: timm has no transformer with this stem")
        name, options = timm_vit(node)
        return name, common | options | ({"img_size": size} if size != 224 else {})
    if trained.kind is not TimmConfig and not timm.is_model(node.name):
        raise not_exportable(f"backbone.name = {node.name}: timm has no model of this name")
    choices: list[dict[str, Any]] = [{}, {"img_size": size}]
    for options in choices:
        try:
            model = timm.create_model(node.name, pretrained=False, **common, **options)
        except TypeError:  # the model has no such argument
            continue
        if shapes(model) == shapes(backbone):
            return node.name, common | options
    raise not_exportable(f"backbone.name = {node.name}: timm's model of this name has other weights")


def timm_vit(node: Any) -> tuple[str, dict[str, Any]]:
    """Return the name of timm's transformer of these sizes, or of another with the arguments for them."""
    size = SIZES.get((node.embed_dim, node.depth, node.num_heads))
    name = f"vit_{size}_patch{node.patch_size}_224"
    if size and node.mlp_ratio == 4 and timm.is_model(name):
        return name, {}
    keys = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    return "vit_small_patch16_224", {key: node[key] for key in keys}


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of all tensors of a network, by name."""
    return {key: value.shape for key, value in network.state_dict().items()}


@torch.no_grad()
def relative_difference(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Return the largest difference between features, as a share of the largest feature if above 1."""
    first, second = one(images), other(images)
    return ((first - second).abs().max() / second.abs().max().clamp(min=1)).item()
