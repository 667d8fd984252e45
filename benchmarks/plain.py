"""The training step in the released code's plain form, to measure our optimizations against.

`undone(trainer, names)` is a context in which one trainer uses the straightforward code of the released
repository instead of ours. Results change only by rounding, which a test verifies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_exp.backbone.vit import Block, Shapes, VisionTransformer, class_tokens, for_tokens
from dino_exp.dino.optimizer import parameter_groups
from dino_exp.training.trainer import Trainer


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute softmax(q·k / √d)·v with the entire (N, N) matrix in memory."""
    weights = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    return weights.softmax(dim=-1) @ value


block_forward, network_forward = Block.forward, VisionTransformer.forward


def every_token(
    block: Block, x: Tensor, shapes: Shapes, factors: Tensor | None = None, only_class: bool = False
) -> Tensor:
    """Compute all tokens in the last block, although only the class tokens are used."""
    if not only_class:
        return block_forward(block, x, shapes, factors)
    if factors is not None:
        factors = for_tokens(factors.squeeze(-1), shapes).unsqueeze(-1)
    return class_tokens(block_forward(block, x, shapes, factors), shapes)


def size_by_size(network: VisionTransformer, images: Sequence[Tensor]) -> Tensor:
    """Compute the features of each size of crops in a pass of its own."""
    return torch.cat([network_forward(network, each) for each in images])


def pairwise_loss(student_logits: Tensor, teacher_probabilities: Tensor, student_temp: float) -> Tensor:
    """Compute the cross-entropy pair by pair; autograd computes the gradient."""
    batch = len(teacher_probabilities) // 2
    student = (student_logits / student_temp).split(batch)
    terms = [
        torch.sum(-target * F.log_softmax(logits, dim=-1), dim=-1).mean()
        for index, target in enumerate(teacher_probabilities.split(batch))
        for crop, logits in enumerate(student)
        if crop != index
    ]
    return torch.stack(terms).sum() / len(terms)


def clip_one_by_one(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Clip one tensor after the other, and fetch each norm from the device."""
    norms = []
    for parameter in parameters:
        if parameter.grad is not None:
            norm = parameter.grad.norm(2)
            norms.append(norm.item())
            factor = max_norm / (norm + 1e-6)
            if max_norm and factor < 1:
                parameter.grad.mul_(factor)
    return torch.tensor(norms).norm()


@torch.no_grad()
def update_one_by_one(teacher: Iterable[Tensor], student: Iterable[Tensor], momentum: float) -> None:
    """Update one parameter after the other."""
    for target, source in zip(teacher, student, strict=True):
        target.mul_(momentum).add_((1 - momentum) * source.detach())


def _patch(name: str, by: Callable[..., Any]) -> Callable[[Trainer], Any]:
    return lambda trainer: mock.patch(name, by)


def _looped_adamw(trainer: Trainer) -> Any:
    groups = parameter_groups(trainer.student)
    adamw = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, foreach=False)
    return mock.patch.object(trainer, "optimizer", adamw)


def _pairwise_loss(trainer: Trainer) -> Any:
    by = functools.partial(pairwise_loss, student_temp=trainer.dino_loss.student_temp)
    return mock.patch.object(trainer.dino_loss, "cross_entropy", by)


@contextmanager
def _planar(trainer: Trainer) -> Iterator[None]:
    for network in (trainer.student, trainer.teacher):
        network.use_memory_format(torch.contiguous_format)
    try:
        yield
    finally:
        for network in (trainer.student, trainer.teacher):
            network.use_memory_format(torch.channels_last)


UNDO: dict[str, Callable[[Trainer], Any]] = {
    "autocast": lambda trainer: mock.patch.object(trainer, "autocast_type", None),
    "channels-last": _planar,
    "fused attention": _patch("dino_exp.backbone.vit.attend", by=attention),
    "one pass over both resolutions": _patch(
        "dino_exp.backbone.vit.VisionTransformer.forward", by=size_by_size
    ),
    "class token alone in the last block": _patch("dino_exp.backbone.vit.Block.forward", by=every_token),
    "factorized loss": _pairwise_loss,
    "fused AdamW": _looped_adamw,
    "grouped clipping": _patch("dino_exp.training.trainer.clip_gradients", by=clip_one_by_one),
    "grouped EMA": _patch("dino_exp.training.trainer.update_teacher", by=update_one_by_one),
}
"""Optimizations that can be undone, by name."""


@contextmanager
def undone(trainer: Trainer, names: Iterable[str]) -> Iterator[None]:
    """Undo the named optimizations of a trainer within the context."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(UNDO[name](trainer))
        yield
