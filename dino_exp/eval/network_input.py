"""What images a network takes: the side of its patches, and its errors in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dino_exp.errors import UserError


def patch_side(backbone: nn.Module) -> int:
    """Return the side of a transformer's patches in pixels; 1 for networks without patches."""
    owner = backbone if hasattr(backbone, "patch_size") else getattr(backbone, "patch_embed", None)
    side: Any = getattr(owner, "patch_size", 1)
    return int(max(side) if isinstance(side, (tuple, list)) else side)


@contextmanager
def network_errors(problem: str, remedy: str) -> Iterator[None]:
    """Turn an error of the network's forward pass into `UserError("<problem> (<reason>)<remedy>")`."""
    try:
        yield
    except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"{problem} ({reason}){remedy}") from error
