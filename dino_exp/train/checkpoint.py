"""Checkpoints: the complete state of a run in one file, written atomically and safe to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dino_exp.atomic import write_atomically
from dino_exp.errors import UserError
from dino_exp.runs import former_names


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and containers of them) atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content on the CPU, in present names, without executing anything in it.

    Raises:
        UserError: it is damaged.
    """
    try:
        return former_names.TABLE.present_state(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be loaded as a checkpoint ({reason}); replace it with an intact one, or remove "
            "it to train from the start."
        ) from error
