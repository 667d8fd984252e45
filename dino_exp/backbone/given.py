"""A network of somebody's own, given from Python: the backbone of student and teacher."""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from dino_exp.backbone.image_size import output_dim
from dino_exp.backbone.library import switch_off_dropout
from dino_exp.errors import UserError

log = logging.getLogger(__name__)

Given = nn.Module | Callable[[], nn.Module]
"""A network, whose weights training begins with; or what builds one, with new weights for each seed."""

_offered: dict[str, Given] = {}
"""Networks that this process has now, by the digest in `backbone.content`."""


@contextmanager
def offered(content: str, backbone: Given) -> Iterator[None]:
    """Let configurations with this `backbone.content` build this network, within the context."""
    _offered[content] = backbone
    try:
        yield
    finally:
        _offered.pop(content, None)


def given(*, name: str, content: str, in_channels: int, image_size: int) -> nn.Module:
    """Return a copy of the given network, (B, C, S, S) -> (B, feature_dim), without dropout, in train mode.

    Raises `UserError` if this process does not have it, or it does not take such images.
    """
    if content not in _offered:
        raise UserError(
            f"backbone.name = {name}: this network was given from Python, dino_exp.train(backbone=...), and "
            "only code that gives it again can use it. Its trained weights are in the run's "
            "checkpoints/last.pt: under teacher, each with backbone. before its name."
        )
    backbone = _offered[content]
    model = copy.deepcopy(backbone) if isinstance(backbone, nn.Module) else _built(backbone)
    switch_off_dropout(model, keep_depth=False)
    dim = output_dim(model, name=name, in_channels=in_channels, size=image_size)
    if getattr(model, "feature_dim", None) != dim:
        model.feature_dim = dim  # type: ignore[assignment]  # of a module, not a tensor
    return model.train()


def name_of(backbone: Given) -> str:
    """Return the name of a network's class, or of the function that builds it."""
    own = type(backbone) if isinstance(backbone, nn.Module) else backbone
    return re.sub(r"\W+", "", getattr(own, "__name__", "") or type(own).__name__) or "given"


def digest_of(backbone: Any) -> str:
    """Return 16 hexadecimal digits that change with the network: its layers, their code, and its weights.

    The weights do not count where a function builds it. Its dropout and stochastic depth are switched off, as
    in networks of the libraries, because a teacher stays in train mode and has neither; a line says so.

    Raises `UserError` if it is no network that can be trained.
    """
    has_weights, name = isinstance(backbone, nn.Module), name_of(backbone)
    if not has_weights and not callable(backbone):
        raise UserError(
            f"backbone: {type(backbone).__name__}; give an nn.Module that makes (B, D) of images (B, C, S, "
            "S), or a function that builds one."
        )
    if has_weights:
        try:
            model: nn.Module = copy.deepcopy(backbone)
        except Exception as error:  # others' modules raise anything
            raise UserError(
                f"backbone: {name} cannot be copied for the teacher ({error}); give a function that builds "
                "it."
            ) from error
    else:
        with torch.random.fork_rng(devices=[]):
            model = _built(backbone)
    _refuse_untrainable(model, name)
    hashed = hashlib.sha256()
    # without addresses of objects
    described = (re.sub(r"0x[0-9a-f]+", "", repr(model)), _code(model), has_weights or _source(backbone))
    hashed.update(repr(described).encode())
    for key, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            hashed.update(f"{key}{value.dtype}{tuple(value.shape)}".encode())
            if has_weights:
                values = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
                hashed.update(values.numpy().tobytes())
    rates = _rates(model)
    switch_off_dropout(model, keep_depth=False)
    if rates != _rates(model):
        log.warning("The dropout of %s is switched off: a teacher has none.", name)
    return hashed.hexdigest()[:16]


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    model = build()
    if not isinstance(model, nn.Module):
        raise UserError(f"backbone: {name_of(build)} returns {type(model).__name__}, and not an nn.Module.")
    return model


def _refuse_untrainable(model: nn.Module, name: str) -> None:
    parameters = dict(model.named_parameters())
    if any(is_lazy(value) for value in (*parameters.values(), *model.buffers())):
        raise UserError(f"backbone: {name} has lazy parameters; call it once with images before it is given.")
    if not any(value.requires_grad for value in parameters.values()):
        raise UserError(f"backbone: {name} has no parameters to train (none with requires_grad).")
    for key, value in parameters.items():
        if value.dtype != torch.float32:
            raise UserError(
                f"backbone: {key} of {name} is {value.dtype}; give a network in float32, by .float(), and "
                "choose trainer.precision."
            )


def _code(model: nn.Module) -> list[str]:
    """Return the source of each class of layers, in their order, that is of no installed library."""
    return [_source(kind) for kind in dict.fromkeys(type(module) for module in model.modules())]


def _source(of: Any) -> str:
    """Return the source of a class or function; "" if an installed library has it, or nobody."""
    with suppress(OSError, TypeError):
        if "site-packages" not in (inspect.getsourcefile(of) or ""):
            return inspect.getsource(of)
    return ""


def _rates(model: nn.Module) -> list[float]:
    """Return all numbers of a network's modules, of which some are rates of dropout."""
    return [value for each in model.modules() for value in vars(each).values() if isinstance(value, float)]
