"""The commands and modules that a sweep runs in jobs, and which of them this user has seen.

A sweep may come from another person. Whoever submits one has typed its commands or chosen their file, and has
named its modules; a digest of them is kept in the user's own cache, and `resume` asks about all others.
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
from dino_exp.errors import UserError, in_words
from dino_exp.paths import cache_root

PLUGIN = "plugin"
"""The key of a module in what a note is made of."""


def approve(
    folder: Path,
    settings: Mapping[str, Any],
    changes: Sequence[str],
    yes: bool,
    console: Console,
    plugins: Mapping[str, str],
) -> None:
    """Ask whether a manifest's commands may run and modules be imported, unless this user knows them.

    Args:
        folder: the sweep's.
        settings: of the manifest.
        changes: `key=value`, typed by the user, which replace settings.
        yes: do not ask.
        plugins: modules of the runs, with the folder of each.

    Raises:
        UserError: they may not, or nobody can be asked.
    """
    typed = {change.partition("=")[0] for change in changes}
    found = _commands({key: value for key, value in settings.items() if key not in typed})
    found = {} if _is_known(found) else found
    modules = {name: place for name, place in plugins.items() if not is_known(name, place)}
    if not found and not modules:
        return
    if found:
        console.print(f"{folder}: manifest.json has commands that you have not submitted or approved before:")
    for key, value in found.items():
        for line in value if isinstance(value, list) else [value]:
            console.print(Text(f"  hydra.launcher.{key}: {json.dumps(line)}"), soft_wrap=True)
    if modules:
        console.print(f"{folder}: its runs import modules that you have not named or approved before:")
    for name, place in modules.items():
        console.print(Text(f"  plugins: {json.dumps(name)} of {json.dumps(place)}"), soft_wrap=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{folder}: not resumed; if its jobs may run these commands as you, add --yes.")
    if console.input("May its jobs run them as you? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError(f"{folder}: not resumed.")


def remember(settings: Mapping[str, Any], plugins: Mapping[str, str]) -> None:
    """Note that this user has submitted the commands of these settings, and has named these modules.

    Raises:
        UserError: no note of a module can be written, without which a queue does not import it.
    """
    for found in (_commands(settings), *(_module(name, place) for name, place in plugins.items())):
        if found:
            try:
                note = _note_of(found)
                note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                note.touch(mode=0o600)
            except OSError as error:
                if PLUGIN in found:  # of commands, `resume` asks
                    raise UserError(f"{in_words(error)}; set XDG_CACHE_HOME to a folder of yours.") from None


def is_known(module: str, folder: str) -> bool:
    """Return whether this user has named a module in this folder, or has approved it."""
    return _is_known(_module(module, folder))


def _module(name: str, folder: str) -> dict[str, Any]:
    return {PLUGIN: [name, folder]}


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
