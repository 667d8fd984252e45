"""Reads a file of weights with nothing in it executed, and recognizes what it holds."""

from __future__ import annotations

import argparse
import pickle
import re
import textwrap
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dino_exp.errors import UserError
from dino_exp.weights.released_layout import State, our_names

WRAPPERS = ("state_dict", "model")
"""Keys under which timm's, torchvision's and others' training scripts save a network."""


@dataclass(frozen=True)
class Weights:
    """What a file holds, under our names: `backbone.*`, and `head.*` where there is one."""

    file: Path
    kind: str
    """In words, for a person."""
    teacher: State
    """Or the only network that there is."""
    student: State | None = None
    center: Tensor | None = None
    """(1, K)."""
    step: int | None = None
    """Of the optimizer, in a checkpoint of this project."""


def read(file: Path) -> Weights:
    """Recognize a run's or a released checkpoint, or a network's tensors.

    Raises:
        UserError: it is damaged, holds something that would have to be executed, or none of these.
    """
    content = load_safely(file)
    if not isinstance(content, Mapping):
        raise UserError(f"{file}: holds a {type(content).__name__}, not weights by name; save a state_dict.")
    networks = {role: _tensors(content.get(role)) for role in ("teacher", "student")}
    if any(networks.values()):
        ours = "config" in content and "step" in content
        loss = content.get("loss" if ours else "dino_loss")
        center = loss.get("center") if isinstance(loss, Mapping) else None
        return Weights(
            file=file,
            kind=f"a checkpoint of this project, step {content['step']:,}" if ours else released(content),
            teacher=networks["teacher"] or networks["student"],
            student=networks["student"] if all(networks.values()) else None,
            center=center if isinstance(center, Tensor) else None,
            step=content["step"] if ours else None,
        )
    wrapped = next((content[key] for key in WRAPPERS if _tensors(content.get(key))), content)
    state = _tensors(wrapped)
    if not state:
        raise UserError(
            f"{file}: neither a network's tensors nor a DINO checkpoint; it holds {_listed(wrapped)}. Give a "
            "state_dict, or a file with student and teacher."
        )
    return Weights(file, "one network's weights", state)


def load_safely(file: Path) -> Any:
    """The content of a file on the CPU; a `UserError` if it is damaged or would have to be executed.

    Released checkpoints hold their command line as an `argparse.Namespace`; nothing else is let in.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols, whose files are refused anyway
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise UserError(
                f"{file}: holds {found.group(1)}, which loading would have to execute, and was refused; ask "
                "for the bare tensors (torch.save of a state_dict, or .safetensors)."
            ) from None
        raise UserError(_damaged(file, "no file of torch.save")) from None
    except Exception as error:  # there is no end to what a broken file makes a reader raise
        said = str(error).strip()  # of a KeyError the key alone
        raise UserError(_damaged(file, said if " " in said else type(error).__name__)) from None


def released(content: Mapping[str, Any]) -> str:
    """What a released full checkpoint is."""
    epoch = content.get("epoch")
    return f"a released DINO checkpoint{f', epoch {epoch}' if isinstance(epoch, int) else ''}"


def _tensors(value: Any) -> State:
    """A network's tensors under our names; empty if it is no such thing."""
    if not isinstance(value, Mapping) or not value:
        return {}
    if not all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items()):
        return {}
    return our_names(value)


def _damaged(file: Path, reason: str) -> str:
    first = textwrap.shorten(reason.splitlines()[0], 120, placeholder=" ...").rstrip(".")
    return (
        f"{file}: not a whole file of weights ({first}); it was cut short, or is another kind of file. Fetch "
        "or save it again."
    )


def _listed(content: Mapping[Any, Any]) -> str:
    names = [str(key) for key in list(content)[:5]]
    return f"{', '.join(names)}{', ...' if len(content) > len(names) else ''}" if names else "nothing"
