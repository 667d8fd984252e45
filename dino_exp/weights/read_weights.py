"""Reading of files with weights, without executing anything in them."""

from __future__ import annotations

import argparse
import pickle
import re
import textwrap
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dino_exp.errors import UserError
from dino_exp.weights.released_layout import State, our_names

WRAPPERS = ("state_dict", "model")
"""Keys under which training scripts such as timm's and torchvision's save a network."""


@dataclass(frozen=True)
class Weights:
    """Content of a file, under our names: `backbone.*`, and `head.*` if it has a head."""

    file: Path
    kind: str
    """What the file is, in words."""
    teacher: State
    """The teacher, or the only network in the file."""
    student: State | None = None
    center: Tensor | None = None
    """(1, K)."""
    step: int | None = None
    """Optimizer step, if the file is a checkpoint of this project."""


def read_weights(file: Path) -> Weights:
    """Read a checkpoint of this project or of the released code, or one network's tensors.

    Raises:
        UserError: the file is damaged, has content that loading would execute, or is none of these.
    """
    content = load_safely(file)
    try:
        return _recognized(file, content)
    except UserError:
        raise
    except Exception as error:  # tensors of an unknown network may have any shape
        raise UserError(_damaged(file, str(error) or type(error).__name__)) from error


def _recognized(file: Path, content: Any) -> Weights:
    if not isinstance(content, Mapping):
        raise UserError(
            f"{file}: contains a {type(content).__name__}, not weights by name; save a state_dict."
        )
    networks = {role: _tensors(content.get(role)) for role in ("teacher", "student")}
    if any(networks.values()):
        step = _count(content.get("step"))
        ours = "config" in content and step is not None
        loss = content.get("loss" if ours else "dino_loss")
        center = loss.get("center") if isinstance(loss, Mapping) else None
        return Weights(
            file=file,
            kind=f"a checkpoint of this project, step {step:,}" if ours else _released_kind(content),
            teacher=networks["teacher"] or networks["student"],
            student=networks["student"] if all(networks.values()) else None,
            center=center if isinstance(center, Tensor) else None,
            step=step if ours else None,
        )
    wrapped = next((content[key] for key in WRAPPERS if _tensors(content.get(key))), content)
    state = _tensors(wrapped)
    if not state:
        raise UserError(
            f"{file}: neither a network's tensors nor a DINO checkpoint; it contains {_listed(wrapped)}. Use "
            "a state_dict, or a file with student and teacher."
        )
    return Weights(file, "one network's weights", state)


def load_safely(file: Path) -> Any:
    """Return the content of a file, on the CPU.

    Raises `UserError` if it is damaged or has content that loading would execute. The only class allowed is
    `argparse.Namespace`, in which released checkpoints keep their command line.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        _check_members(file)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other pickle protocols, whose files are refused anyway
            content = torch.load(file, map_location="cpu", weights_only=True)
        _check_sizes(file, content)
        return content
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise UserError(
                f"{file}: contains {found.group(1)}, which loading would execute, so it was not loaded; ask "
                "for the tensors alone (torch.save of a state_dict, or .safetensors)."
            ) from None
        raise UserError(_damaged(file, "not a file of torch.save")) from None
    except Exception as error:  # a damaged file can make a reader raise anything
        text = str(error).strip()  # for a KeyError, only the key
        raise UserError(_damaged(file, text if " " in text else type(error).__name__)) from None


def _check_members(file: Path) -> None:
    """Raise UserError for compressed parts, a few bytes of which fill memory; torch.save writes none."""
    with file.open("rb") as start:
        if start.read(2) != b"PK":
            return  # the format of torch before 1.6 compresses nothing
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    size = sum(member.file_size for member in members)
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or size > file.stat().st_size:
        raise UserError(
            f"{file}: its parts are compressed, to {size:,} bytes in memory, which torch.save never does, so "
            "it was not loaded; unpack and save it again, or ask for .safetensors."
        )


def _check_sizes(file: Path, content: Any) -> None:
    """Raise UserError for tensors that are not plain, or that claim more values than the file can hold."""
    most = file.stat().st_size
    for tensor in _all_tensors(content):
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or max(tensor.nbytes, tensor.untyped_storage().nbytes()) > most:
            raise UserError(
                f"{file}: one of its tensors, {tuple(tensor.shape)}, is not stored as its values; save a "
                "state_dict of plain tensors."
            )


def _all_tensors(content: Any) -> Iterator[Tensor]:
    waiting, seen = [content], set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, Mapping | list | tuple) and id(each) not in seen:
            seen.add(id(each))
            waiting.extend(each.values() if isinstance(each, Mapping) else each)


def _released_kind(content: Mapping[str, Any]) -> str:
    epoch = _count(content.get("epoch"))
    return f"a released DINO checkpoint{'' if epoch is None else f', epoch {epoch}'}"


def _count(value: Any) -> int | None:
    """Return a number of steps or epochs; None for anything else, such as a number of thousands of digits."""
    return value if isinstance(value, int) and 0 <= value < 2**63 else None


def _tensors(value: Any) -> State:
    """Return a network's tensors under our names; empty if `value` is not a network's state dict."""
    if not isinstance(value, Mapping) or not value:
        return {}
    if not all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items()):
        return {}
    return our_names(value)


def checkpoint_file(run: str | Path, checkpoint: str) -> Path:
    """Return `checkpoints/<checkpoint>.pt` of a run's folder; raise `UserError` if it is missing."""
    file = Path(run).expanduser() / "checkpoints" / f"{checkpoint}.pt"
    if not file.is_file():
        saved = sorted(each.stem for each in file.parent.glob("*.pt"))
        hint = (
            f"it has checkpoint={' and checkpoint='.join(saved)}" if saved else "nothing has been saved yet"
        )
        raise UserError(f"run = {run}: no checkpoints/{file.name}; {hint}.")
    return file


def _damaged(file: Path, reason: str) -> str:
    first = textwrap.shorten(reason.splitlines()[0], 120, placeholder=" ...").rstrip(".")
    return (
        f"{file}: not a complete file of weights ({first}); it was cut short, or is another kind of file. "
        "Download or save it again."
    )


def _listed(content: Mapping[Any, Any]) -> str:
    names = [str(key) for key in list(content)[:5]]
    return f"{', '.join(names)}{', ...' if len(content) > len(names) else ''}" if names else "nothing"
