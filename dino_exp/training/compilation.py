"""Compilation of student and teacher: whether it pays, and that it is done before the first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dino_exp.backbone.execution import compile_in_place
from dino_exp.backbone.vit import VisionTransformer
from dino_exp.dino.model import DINONetwork
from dino_exp.errors import UserError
from dino_exp.parallel import distributed

log = logging.getLogger(__name__)

COMPILE_FROM_BLOCKS = 40_000
"""Steps of a run on a GPU times its transformer blocks from which compiling saves more time than it takes.

The programs are as many for three blocks as for twelve, and each block of each step becomes faster. An
estimate, not measured on a GPU: a minute of compiling, 1.5 ms saved per block and step."""


def pays(backbone: nn.Module, total_steps: int, device: torch.device) -> bool:
    """Return whether a run is compiled with `trainer.compile = auto`.

    Depends on what is fixed for a run, so that it is resumed with the same arithmetic. On a CPU a compiled
    step takes as long as any (docs/performance.md), and networks of the libraries may be slow to compile.
    """
    if device.type != "cuda" or not isinstance(backbone, VisionTransformer):
        return False
    return total_steps * len(backbone.blocks) >= COMPILE_FROM_BLOCKS


def compile_networks(
    student: DINONetwork,
    teacher: DINONetwork,
    views: Sequence[torch.Tensor],
    autocast_type: torch.dtype | None,
    *,
    required: bool,
) -> bool:
    """Compile both networks for a run, and return whether they are compiled.

    Args:
        student: on its device, in train mode, like the teacher; neither is wrapped for several processes.
        teacher: its counterpart.
        views: crops in the shapes of a step; their values do not matter.
        autocast_type: that of a step.
        required: raise `UserError` where compiling does not work, instead of a warning.
    """
    torch.compiler.reset()  # programs of earlier runs in this process count towards the limit for a function
    try:
        for network in (student, teacher):
            compile_in_place(network.backbone)
            if not (distributed.several() and _has_batch_norm(network.head)):  # which will communicate
                network.head.compile(fullgraph=True, dynamic=False)
        first_pass(student, teacher, views, autocast_type)
    except torch.OutOfMemoryError:
        pass  # the first step will say so
    except Exception as error:
        reason = _reason(error)
        if required:
            raise UserError(
                f"trainer.compile = true: torch.compile does not work on this machine ({reason}). It needs a "
                "C++ compiler such as g++ (CXX names another), and Triton on a GPU; or set "
                "trainer.compile=false."
            ) from error
        log.warning("Training uncompiled, because torch.compile does not work on this machine: %s", reason)
        for module in (*student.modules(), *teacher.modules()):
            module._compiled_call_impl = None
        return False
    return True


def first_pass(
    student: DINONetwork,
    teacher: DINONetwork,
    views: Sequence[torch.Tensor],
    autocast_type: torch.dtype | None,
) -> None:
    """Run both networks once as a step does, backward too; weights, buffers and random numbers stay."""
    device = views[0].device
    buffers = [*student.buffers(), *teacher.buffers()]
    before = [buffer.clone() for buffer in buffers]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with torch.autocast(device.type, autocast_type, enabled=autocast_type is not None):
            with torch.no_grad():
                teacher(views[:1])
            logits = student(views).logits
        logits.float().sum().backward()
    student.zero_grad(set_to_none=True)
    for buffer, value in zip(buffers, before, strict=True):
        buffer.copy_(value)


def _has_batch_norm(network: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def _reason(error: Exception) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("backend=")), type(error).__name__)
