"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path

from dino_exp.errors import UserError

NO_HOME = Path(os.devnull) / "HOME is not set"
"""A path that nobody can create, and that says why where it is named."""


def expanded(text: str | Path) -> Path:
    """Return a path with its `~` replaced by a home folder.

    Raises:
        UserError: this user has no home folder, or there is no user of the name behind `~`.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no such home folder; write the path without ~.") from None


def home() -> Path:
    """Return the home folder; `NO_HOME` for a user without HOME and without an entry among the users."""
    try:
        return Path.home()
    except RuntimeError:
        return NO_HOME


def cache_root() -> Path:
    """Return the folder for drawn and downloaded sets without data.root, and for all caches.

    It may be missing, not writable, or for a user without a home folder impossible to create.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else home() / ".cache") / "dino_exp"
