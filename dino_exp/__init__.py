"""DINO self-supervised pretraining (Caron et al. 2021): exact, resumable, with collapse diagnostics."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_exp.api.from_python import sweep as sweep
    from dino_exp.api.from_python import train as train

__version__ = "0.1.0"

# Before anything imports torch, whose OpenMP reads it once. By default its threads spin for milliseconds
# where they wait for one another, and keep the core from the one that they wait for if other programs run.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "3000"


def __getattr__(name: str) -> Any:
    """Import `dino_exp.train` or `dino_exp.sweep` when it is asked for, as both need torch."""
    if name in ("train", "sweep"):
        return getattr(import_module("dino_exp.api.from_python"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
