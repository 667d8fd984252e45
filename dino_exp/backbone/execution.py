"""How a backbone runs, which changes speed, memory and rounding but not what it computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dino_exp.errors import UserError

STEMS = ("patch_embed", "stem")
"""Modules of timm's models and ours that come before the blocks and are never computed again."""


def is_convolutional(backbone: nn.Module) -> bool:
    """Whether most parameters are those of 2-D convolutions, which run faster on channels-last data."""
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    in_convolutions = sum(parameter.numel() for module in convolutions for parameter in module.parameters())
    return 2 * in_convolutions > sum(parameter.numel() for parameter in backbone.parameters())


def checkpoint_blocks(backbone: nn.Module, *, name: str) -> None:
    """Let the backward pass compute the blocks' activations again instead of keeping them.

    Raises `UserError` for a backbone that cannot, or whose blocks hold batch norm: it would see each batch
    twice, and its running statistics would move twice.
    """
    refused = f"trainer.checkpoint_blocks = true: backbone.name = {name}"
    fix = "set trainer.checkpoint_blocks=false, and trainer.accumulate higher if memory is short."
    inside = [
        path
        for path, module in backbone.named_modules()
        if isinstance(module, _BatchNorm) and path.split(".")[0] not in STEMS
    ]
    if inside:
        raise UserError(f"{refused} has batch norm in its blocks ({inside[0]}), which must run once; {fix}")
    enable = getattr(backbone, "set_grad_checkpointing", None)
    try:
        if enable is None:
            raise AssertionError
        enable(True)
    except AssertionError:
        raise UserError(f"{refused} has no blocks that can be computed again; {fix}") from None


def compile_in_place(backbone: nn.Module, device: torch.device) -> None:
    """Have `torch.compile` translate the forward pass, once per resolution; the state dict keeps its names.

    Random numbers stay those of the untranslated network. Raises `UserError` where nothing can be compiled.
    """
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"trainer.compile = true: torch.compile does not work on this machine ({reason}). It needs a C++ "
            "compiler such as g++ (CXX names another), and Triton on a GPU; or set trainer.compile=false."
        ) from error
    backbone.compile(dynamic=False, options={"fallback_random": True})


def has_unused_parameters(network: nn.Module, channels: int, size: int) -> bool:
    """Whether some trainable parameters get no gradient from images of `size`, as in a few library models.

    In eval mode, where a forward pass changes nothing; afterwards the network is in train mode.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval()
    try:
        logits: Tensor = network([trainable[0].new_zeros(2, channels, size, size)]).logits
        gradients = torch.autograd.grad(logits.float().sum(), trainable, allow_unused=True)
    finally:
        network.train()
    return any(gradient is None for gradient in gradients)
