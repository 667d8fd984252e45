"""Ways to run a backbone that change speed, memory and rounding, but not what it computes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.errors import UserError

STEMS = ("patch_embed", "stem")
"""Modules before the blocks, in our models and timm's, which run only once even with recomputation."""


def is_convolutional(backbone: nn.Module) -> bool:
    """Return whether most parameters belong to 2-D convolutions, which run faster on channels-last images."""
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    in_convolutions = sum(parameter.numel() for module in convolutions for parameter in module.parameters())
    return 2 * in_convolutions > sum(parameter.numel() for parameter in backbone.parameters())


class _Conv2d(nn.Conv2d):
    """A convolution that is in float32 where its input is narrower than its stride.

    In bfloat16 on a CPU, PyTorch does not set the gradient of kernel columns that see only padding then; it
    is what the memory had before, even NaN (2.14.1, with AVX-512 and bfloat16 instructions).
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-1] >= self.stride[1]:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def keep_gradients_exact(network: nn.Module, device: torch.device, autocast_type: torch.dtype | None) -> None:
    """Replace convolutions whose weights could get wrong gradients, as from small crops in a ResNet.

    Parameters and names stay.
    """
    if device.type == "cpu" and autocast_type is torch.bfloat16:
        for module in network.modules():
            if type(module) is nn.Conv2d and module.stride[1] > 1:
                module.__class__ = _Conv2d


def checkpoint_blocks(backbone: nn.Module, *, name: str) -> None:
    """Recompute the activations of the blocks in the backward pass instead of keeping them.

    Raises `UserError` for a backbone without support for it, and for one with batch norm in its blocks, whose
    running statistics would move twice per batch.
    """
    refused = f"trainer.checkpoint_blocks = true: backbone.name = {name}"
    fix = "set trainer.checkpoint_blocks=false, and trainer.accumulate higher if memory is short."
    inside = [
        path
        for path, module in backbone.named_modules()
        if isinstance(module, _BatchNorm) and path.split(".")[0] not in STEMS
    ]
    if inside:
        raise UserError(
            f"{refused} has batch norm in its blocks ({inside[0]}), which may run only once; {fix}"
        )
    try:
        cast(Any, backbone).set_grad_checkpointing(True)
    except (AttributeError, AssertionError):  # no such method, or a timm model that refuses
        raise UserError(f"{refused} has no blocks that can be recomputed; {fix}") from None


def compile_in_place(backbone: nn.Module) -> None:
    """Compile the forward pass with `torch.compile`, at its first call for each shape; state-dict names stay.

    Of our transformer the blocks, which are all alike: one program serves them all. A network of a library is
    compiled as one program; its random numbers stay those of the uncompiled network.
    """
    if isinstance(backbone, VisionTransformer):
        for block in backbone.blocks:
            block.compile(fullgraph=True, dynamic=False)
    else:
        backbone.compile(dynamic=False, options={"fallback_random": True})


def has_unused_parameters(network: nn.Module, channels: int, size: int) -> bool:
    """Return whether some trainable parameters get no gradient, as in a few library models.

    Runs two images of `size` x `size` pixels in eval mode, where a forward pass changes nothing; afterwards
    the network is in train mode.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    try:
        logits: Tensor = network([trainable[0].new_zeros(2, channels, size, size)]).logits
        gradients = torch.autograd.grad(logits.float().sum(), trainable, allow_unused=True)
    finally:
        network.train()
    return any(gradient is None for gradient in gradients)
