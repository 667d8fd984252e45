"""Tiny networks, and those of the released code with its names and wrappers."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.dino.head import DINOHead
from dino_exp.dino.model import DINONetwork


def tiny_vit(image_size: int = 32, seed: int = 0) -> VisionTransformer:
    """Build a ViT with 16 dimensions, two blocks and patches of 4."""
    torch.manual_seed(seed)
    return VisionTransformer(patch_size=4, embed_dim=16, depth=2, num_heads=2, image_size=image_size)


def network(backbone: nn.Module, *, width: int = 16, use_bn: bool = False, out_dim: int = 12) -> DINONetwork:
    """Add a small head to a backbone of `width` features."""
    head = DINOHead(in_dim=width, out_dim=out_dim, hidden_dim=8, bottleneck_dim=6, use_bn=use_bn)
    return DINONetwork(backbone, head)


class ReleasedHead(nn.Module):
    """`DINOHead` of the released `vision_transformer.py`, with its deprecated weight norm."""

    def __init__(self, width: int, out_dim: int, use_bn: bool) -> None:
        super().__init__()
        norm = [nn.BatchNorm1d(8)] if use_bn else []
        self.mlp = nn.Sequential(
            nn.Linear(width, 8), *norm, nn.GELU(), nn.Linear(8, 8), *norm, nn.GELU(), nn.Linear(8, 6)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.last_layer = nn.utils.weight_norm(nn.Linear(6, out_dim, bias=False))


class Wrapper(nn.Module):
    """Module with submodules of the given names, as the released `MultiCropWrapper` and DDP have."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def released_checkpoint(*, use_bn: bool, out_dim: int = 12) -> dict[str, object]:
    """Return a full checkpoint with the tensor names of the released code."""

    def state(seed: int, wrapped: bool) -> dict[str, Tensor]:
        both = Wrapper(backbone=tiny_vit(seed=seed), head=ReleasedHead(16, out_dim, use_bn))
        return dict((Wrapper(module=both) if wrapped else both).state_dict())

    return {
        "student": state(1, wrapped=True),
        "teacher": state(2, wrapped=use_bn),
        "epoch": 7,
        "dino_loss": {"center": torch.arange(float(out_dim))[None] + 1},
    }
