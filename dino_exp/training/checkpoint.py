"""Checkpoints: the complete state of a run in one file, written atomically, checked and safe to load."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from yaml import YAMLError

from dino_exp.atomic import write_atomically
from dino_exp.config.identity import differing_keys
from dino_exp.config.stored import parse
from dino_exp.errors import UserError
from dino_exp.runs import former_names
from dino_exp.training.training_state import TrainingState
from dino_exp.weights.read_weights import CHECKPOINTS, DamagedError, load_safely

LAST, PREVIOUS, BEST = CHECKPOINTS


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings, and containers of them) atomically.

    The `last.pt` that is replaced stays as `previous.pt`, where the file system has hard links: with them
    there is a `last.pt` at every moment.
    """
    if path.name == LAST and path.exists():
        with suppress(OSError):
            path.with_name(PREVIOUS).unlink(missing_ok=True)  # before writing, as it takes room
            os.link(path, path.with_name(PREVIOUS))
    write_atomically(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content on the CPU, in present names, without executing anything in it.

    Raises:
        UserError: it cannot be read, is damaged, or something else.
    """
    state = load_safely(path)
    if not isinstance(state, dict) or not state.keys() >= {"config", "step"}:
        raise DamagedError(path, "it has no configuration and no step")
    return former_names.TABLE.present_state(state)


def newest(folder: Path) -> str | None:
    """Return the file that a run resumes from: `last.pt`, without it `previous.pt`, or None for neither."""
    return next((name for name in (LAST, PREVIOUS) if os.path.lexists(folder / name)), None)


def restore(trainer: TrainingState, path: Path) -> None:
    """Continue from a checkpoint of the trainer's own run.

    Raises:
        UserError: the file cannot be read, is damaged, or belongs to another run; it says how to go on. The
            trainer is not usable then.
    """
    try:
        state = load(path)
        different = _differing(state["config"], trainer)
        step, end = state["step"], trainer.plan.stop_step
        if not different and not (isinstance(step, int) and 0 <= step <= end):
            different = f"step = {step!r} there, and at most {end} here"
        if not different:
            trainer.restore(state)
            return
    except torch.OutOfMemoryError:
        raise
    except DamagedError as error:
        raise DamagedError(path, error.reason, _ways_on(path)) from None
    except UserError as error:
        raise UserError(f"{error} {_ways_on(path)}") from None
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, YAMLError) as error:
        raise DamagedError(path, f"{type(error).__name__}: {error}", _ways_on(path)) from error
    raise UserError(f"{path}: a checkpoint of another run ({different}). {_ways_on(path)}")


def _differing(text: str, trainer: TrainingState) -> str:
    """Return the keys in which a stored configuration is another run, in words; empty if there are none.

    Interpolations, which earlier versions stored, are not resolved, because a resolver can read the
    environment; such a key is not compared.
    """
    stored = parse(text.encode(), resolved=False)
    if "${" in str(stored.get("init_sha256")):
        stored["init_sha256"] = getattr(trainer.cfg, "init_sha256", None)
    pairs = [
        f"{key}: {there!r} there, {here!r} here"
        for key, (there, here) in differing_keys(stored, trainer.cfg).items()
        if "${" not in str(there)
    ]
    return "; ".join(pairs[:5]) + ("; ..." if len(pairs) > 5 else "")


def _ways_on(path: Path) -> str:
    """Return how a run can go on without this checkpoint."""
    ways = ["train from the start with resume=never"]
    if path.with_name(BEST).is_file():
        ways.insert(0, f"put {BEST} in its place")
    if path.name == LAST and path.with_name(PREVIOUS).is_file():
        ways.insert(0, f"remove it to resume from {PREVIOUS}, the checkpoint before it")
    words = "; or ".join(ways)
    return f"{words[0].upper()}{words[1:]}."
