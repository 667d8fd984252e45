"""The commands that a sweep's settings run in jobs, and which of them this user has seen.

A manifest may come from another person. Whoever submits a sweep has typed its commands or chosen their file;
a digest of them is kept in the user's own cache, and `resume` asks about all others.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from dino_exp.config.launcher_settings import COMMANDS
from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.paths import cache_root


def approve(
    folder: Path, settings: Mapping[str, Any], changes: Sequence[str], yes: bool, console: Console
) -> None:
    """Ask whether a manifest's commands may run, unless this user knows them.

    Args:
        folder: the sweep's.
        settings: of the manifest.
        changes: `key=value`, typed by the user, which replace settings.
        yes: do not ask.

    Raises:
        UserError: they may not, or nobody can be asked.
    """
    typed = {change.partition("=")[0] for change in changes}
    found = _commands({key: value for key, value in settings.items() if key not in typed})
    if not found or _is_known(found):
        return
    console.print(f"{folder}: manifest.json has commands that you have not submitted or approved before:")
    for key, value in found.items():
        for line in value if isinstance(value, list) else [value]:
            console.print(Text(f"  hydra.launcher.{key}: {json.dumps(line)}"), soft_wrap=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{folder}: not resumed; if its jobs may run these commands as you, add --yes.")
    if console.input("May its jobs run them as you? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError(f"{folder}: not resumed.")


def remember(settings: Mapping[str, Any]) -> None:
    """Note that this user has submitted the commands of these settings."""
    found = _commands(settings)
    if found:
        try:
            note = _note_of(found)
            note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            note.touch(mode=0o600)
        except OSError:
            return  # without a home or room for it, `resume` asks


def _commands(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in COMMANDS if settings.get(key)}


def _is_known(found: Mapping[str, Any]) -> bool:
    try:
        return _note_of(found).stat().st_uid == os.getuid()
    except OSError:
        return False


def _note_of(found: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return cache_root() / "approved" / digest
