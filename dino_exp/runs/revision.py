"""The git revision that a result comes from."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from dino_exp.installation import CHECKOUT


@cache
def git_revision() -> dict[str, Any]:
    """Return the commit of the running code, and whether files differ from it; None outside a checkout."""
    if not CHECKOUT:  # the installed package may lie in another repository
        return {"git_revision": None, "git_dirty": None}

    def git(*words: str) -> str | None:
        here = Path(__file__).parent
        try:
            done = subprocess.run(
                ["git", *words], cwd=here, capture_output=True, encoding="utf-8", errors="replace", timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"git_revision": revision, "git_dirty": bool(changes) if changes is not None else None}
