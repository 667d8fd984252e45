"""Reading of files with weights, without executing anything in them."""

from __future__ import annotations

import argparse
import errno
import os
import pickle
import re
import textwrap
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dino_exp.errors import UserError, in_words
from dino_exp.paths import expanded
from dino_exp.runs.weights_file import verify
from dino_exp.weights.networks_in_file import (
    STUDENTS,
    TEACHERS,
    has_word,
    likely_prefix,
    mappings_in,
    matching_prefixes,
    network_at,
)
from dino_exp.weights.released_layout import State, our_names

CHECKPOINTS = ("last.pt", "previous.pt", "best.pt")
"""Files in a run's folder `checkpoints`."""


class DamagedError(UserError):
    """A file of weights that is damaged, cut short, or another kind of file.

    Args:
        file: the file.
        reason: what is wrong with it.
        fix: what would be right; by default other checkpoints of its run, or to get it again.
    """

    def __init__(self, file: Path, reason: str, fix: str = "") -> None:
        others = [name for name in CHECKPOINTS if name != file.name and file.with_name(name).is_file()]
        if not fix and file.parent.name == "checkpoints" and others:
            fix = f"Other checkpoints of this run: {', '.join(others)}."
        self.reason = textwrap.shorten((reason.splitlines() or [""])[0], 120, placeholder=" ...").rstrip(".")
        super().__init__(
            f"{file}: not a complete file of weights ({self.reason}); it is damaged, cut short, or another "
            f"kind of file. {fix or 'Download or save it again.'}"
        )


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


def read_weights(file: Path, backbone: Mapping[str, Tensor], adaptable: Collection[str] = ()) -> Weights:
    """Read the networks that a file has for a backbone, whatever their names begin with.

    Args:
        file: a checkpoint of this project or of the released code, or any file with a network's tensors.
        backbone: the tensors of the backbone that is to be loaded, by its own names.
        adaptable: names of those that may have another shape in the file.

    Raises:
        UserError: the file is damaged, has content that loading would execute, or has no tensors, or it is
            unclear which of its networks is meant.
    """
    content = load_safely(file)
    try:
        return _recognized(file, content, backbone, adaptable)
    except UserError:
        raise
    except Exception as error:  # tensors of an unknown network may have any shape
        raise DamagedError(file, str(error) or type(error).__name__) from error


def _recognized(
    file: Path, content: Any, backbone: Mapping[str, Tensor], adaptable: Collection[str]
) -> Weights:
    if not isinstance(content, Mapping):
        raise UserError(
            f"{file}: contains a {type(content).__name__}, not weights by name; save a state_dict."
        )
    chunks = not any(re.match(r"blocks\.\d+\.\d+\.", name) for name in backbone)
    mappings = {path: our_names(state, chunks=chunks) for path, state in mappings_in(content).items()}
    tensors = our_names(
        {f"{path}{key}": tensor for path, state in mappings.items() for key, tensor in state.items()}
    )
    if not tensors:
        raise UserError(
            f"{file}: neither a network's tensors nor a DINO checkpoint; it contains {_listed(content)}. Use "
            "a state_dict, or a file with student and teacher."
        )
    teacher, student = _roles(file, matching_prefixes(tensors, backbone, adaptable)) or (
        likely_prefix(mappings),
        None,
    )
    step = _count(content.get("step"))
    ours = "config" in content and step is not None
    loss = content.get("loss" if ours else "dino_loss")
    center = loss.get("center") if isinstance(loss, Mapping) else None
    kind = _released_kind(content)
    if ours:
        kind = f"a checkpoint of this project, step {step:,}"
    elif not re.fullmatch(r"(teacher|student)\.(module\.)?backbone\.", teacher):
        kind = "one network's weights" if student is None else "the weights of two networks"
        where = " and ".join(prefix for prefix in (teacher, student) if prefix)
        kind += f", under {where}" if where else ""
    return Weights(
        file=file,
        kind=kind,
        teacher=network_at(tensors, teacher),
        student=None if student is None else network_at(tensors, student),
        center=center if isinstance(center, Tensor) else None,
        step=step if ours else None,
    )


def _roles(file: Path, prefixes: Sequence[str]) -> tuple[str, str | None] | None:
    """Return which prefix is the teacher's, or the only one, and which the student's; None if there is none.

    Raises:
        UserError: there are several, and their names do not say which is the teacher.
    """
    if len(prefixes) < 2:
        return (prefixes[0], None) if prefixes else None
    teachers = [prefix for prefix in prefixes if has_word(prefix, TEACHERS)]
    others = [prefix for prefix in prefixes if prefix not in teachers]
    if len(others) > 1:
        others = [prefix for prefix in others if has_word(prefix, STUDENTS)]
    if len(teachers) == 1:
        return teachers[0], others[0] if len(others) == 1 else None
    raise UserError(
        f"{file}: contains {len(prefixes)} networks that fit, under {' and '.join(map(repr, prefixes))}; "
        "save the one that is meant as a state_dict of its own."
    )


def load_safely(file: Path) -> Any:
    """Return the content of a file, on the CPU.

    It is checked against its sums first, if it has any: old files of `torch.save` and safetensors have none.
    The only class allowed is `argparse.Namespace`, in which released checkpoints keep their command line.

    Raises:
        UserError: it cannot be read, is damaged, or has content that loading would execute.
    """
    try:
        if not file.is_file():  # opening a pipe would wait forever
            raise OSError(errno.EINVAL, "not a regular file")
        if file.suffix == ".safetensors":
            return load_file(file)
        # one open file, because a training may replace the checkpoint between the check and the reading
        with (
            file.open("rb") as opened,
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # about other pickle protocols, whose files are refused anyway
            _check_members(file, opened)
            opened.seek(0)
            verify(opened)
            opened.seek(0)
            content = torch.load(opened, map_location="cpu", weights_only=True)
            _check_sizes(file, opened, content)
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
        raise DamagedError(file, "not a file of torch.save") from None
    except OSError as error:
        error.filename = file  # a failed read does not know its file
        raise UserError(f"{in_words(error)}.") from None
    except Exception as error:  # a damaged file can make a reader raise anything
        text = str(error).strip()  # for a KeyError, only the key
        raise DamagedError(file, text if " " in text else type(error).__name__) from None


def _check_members(file: Path, opened: IO[bytes]) -> None:
    """Raise UserError for compressed parts, a few bytes of which fill memory; torch.save writes none."""
    if opened.read(2) != b"PK":
        return  # the format of torch before 1.6 compresses nothing
    with zipfile.ZipFile(opened) as archive:
        members = archive.infolist()
    size = sum(member.file_size for member in members)
    compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if compressed or size > os.fstat(opened.fileno()).st_size:
        raise UserError(
            f"{file}: its parts are compressed, to {size:,} bytes in memory, which torch.save never does, so "
            "it was not loaded; unpack and save it again, or ask for .safetensors."
        )


def _check_sizes(file: Path, opened: IO[bytes], content: Any) -> None:
    """Raise UserError for tensors that are not plain, or that claim more values than the file can hold."""
    most = os.fstat(opened.fileno()).st_size
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


def checkpoint_file(run: str | Path, checkpoint: str) -> Path:
    """Return `checkpoints/<checkpoint>.pt` of a run's folder; raise `UserError` if it is missing."""
    file = expanded(run) / "checkpoints" / f"{checkpoint}.pt"
    if not file.is_file():
        saved = [name for name in ("best", "last") if file.with_name(f"{name}.pt").is_file()]
        hint = (
            f"it has checkpoint={' and checkpoint='.join(saved)}" if saved else "nothing has been saved yet"
        )
        raise UserError(f"run = {run}: no checkpoints/{file.name}; {hint}.")
    return file


def _listed(content: Mapping[Any, Any]) -> str:
    names = [str(key) for key in list(content)[:5]]
    return f"{', '.join(names)}{', ...' if len(content) > len(names) else ''}" if names else "nothing"
