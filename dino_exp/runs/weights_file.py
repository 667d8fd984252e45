"""Where weights are, and which they are: a file, and the digest of its content. Imports no torch."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from pathlib import Path

from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory

CHUNK = 2**20


def weights_file(place: str) -> Path:
    """The file that `place` means: itself, or the last checkpoint of a run's folder.

    Raises:
        UserError: there is none, it is empty or closed to this user, or it is of a run that a newer version
            of this program trains; it was not opened.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
        if not path.is_file():
            raise UserError(
                f"{place}: a folder without checkpoints/last.pt; give the folder of a run that has saved, "
                "e.g. outputs/demo/RUN, or a file of weights."
            )
    if not path.is_file():
        raise UserError(
            f"{place}: there is no such file; give weights (.pth, .pt, .safetensors) or the folder of a run."
        )
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: may not be read by this user; change its permissions.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: an empty file; put whole weights in its place.")
    if path.parent.name == "checkpoints":
        RunDirectory(path.parent.parent).read_status()
    return path


def digest(place: str | None) -> str | None:
    """SHA-256 of the content of the weights at `place`; None where there are none.

    Remembered until the file changes, because a command line asks for it many times.
    """
    if place is None:
        return None
    try:
        path = weights_file(place)
        known = path.stat()
        return _digest(str(path.absolute()), known.st_size, known.st_mtime_ns)
    except (UserError, OSError):
        return None


@cache
def _digest(path: str, size: int, changed: int) -> str:
    content = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            content.update(chunk)
    return content.hexdigest()
