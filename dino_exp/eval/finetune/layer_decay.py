"""Learning rates that decrease towards the input, where features are general (BEiT, Bao et al. 2022)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

BEFORE_BLOCKS = frozenset(
    {"patch_embed", "cls_token", "reg_token", "dist_token", "mask_token", "pos_embed", "norm_pre"}
)
"""Names, in our transformers and timm's, of the parts before the first block."""


def has_layers(backbone: nn.Module) -> bool:
    """Return whether a backbone is a transformer: patches, then blocks. Some convnets have only `blocks`."""
    blocks = getattr(backbone, "blocks", None)
    return isinstance(blocks, (nn.Sequential, nn.ModuleList)) and hasattr(backbone, "patch_embed")


def layer(name: str, blocks: int) -> int:
    """Return a parameter's layer: 0 before the blocks, n in the n-th block, blocks + 1 after the last."""
    top, _, rest = name.partition(".")
    if top == "blocks":
        return int(rest.partition(".")[0]) + 1
    return 0 if top in BEFORE_BLOCKS else blocks + 1


def layered_groups(
    backbone: nn.Module, head: nn.Module, *, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups whose `lr_factor` multiplies the scheduled learning rate.

    The factor is 1 for the head and the final norm, layer_decay for the last block, and one more power of
    layer_decay per block towards the input. It is 1 everywhere in networks that are not transformers. Biases
    and one-dimensional tensors have no weight decay.
    """
    layers = has_layers(backbone)
    blocks = len(backbone.get_submodule("blocks")) if layers else 0  # type: ignore[arg-type]  # a Sequential
    grouped: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for module in (backbone, head):
        for name, parameter in module.named_parameters():
            above = blocks + 1 - layer(name, blocks) if layers and module is backbone else 0
            undecayed = parameter.ndim <= 1 or name.rpartition(".")[2] == "bias"
            grouped[layer_decay**above, 0.0 if undecayed else weight_decay].append(parameter)
    return [
        {"params": parameters, "lr_factor": factor, "weight_decay": decay}
        for (factor, decay), parameters in grouped.items()
    ]
