"""Files of weights, their digests and their check sums. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import zipfile
from functools import cache
from pathlib import Path
from typing import IO

from dino_exp.errors import UserError
from dino_exp.paths import expanded
from dino_exp.runs.run_directory import RunDirectory

CHUNK = 2**20
ZIP = b"PK\3\4"
"""The first bytes of what torch reads as an archive."""
FOLDER = 0x10
"""The bit of a part's attributes by which it is a folder, and without content."""


def weights_file(path_or_run: str) -> Path:
    """Return the file that `path_or_run` names: itself, or the last checkpoint of a run directory.

    The file is not opened.

    Raises:
        UserError: The file is missing, empty or not readable for this user, or it belongs to a run that a
            newer version of this program wrote.
    """
    path = expanded(path_or_run)
    if path.is_dir():
        path = path / "checkpoints" / "last.pt"
        if not path.is_file():
            raise UserError(
                f"{path_or_run}: no checkpoints/last.pt in this folder; give a run that has saved a "
                "checkpoint, e.g. outputs/demo/RUN, or a file of weights."
            )
    if not path.is_file():
        raise UserError(
            f"{path_or_run}: no such file; give weights (.pth, .pt, .safetensors) or a run directory."
        )
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: this user may not read it; change its permissions.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: an empty file; replace it with complete weights.")
    if path.parent.name == "checkpoints":
        RunDirectory(path.parent.parent).read_status()
    return path


def verify(file: IO[bytes]) -> None:
    """Read a file of `torch.save` completely, and compare each part with the CRC-32 that is stored with it.

    torch itself does not look at them. Files of other formats, which have no such sums, are not read, nor
    those that were written with `torch.serialization.set_crc32_options(False)`.

    Raises:
        zipfile.BadZipFile: a part is damaged. Other exceptions are possible where the file's structure is.
    """
    if file.read(len(ZIP)) != ZIP:
        return
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        for part in parts if any(part.CRC for part in parts) else []:
            if part.external_attr & FOLDER:  # torch would return memory that nobody has written to
                raise zipfile.BadZipFile(f"{part.filename} is marked as a folder")
            with archive.open(part) as content:  # compares the sum at its end
                while content.read(CHUNK):
                    pass


def digest(path_or_run: str | None) -> str | None:
    """Return the SHA-256 of the weights that `path_or_run` names, or None if they cannot be read.

    It is cached until the file changes, because composing a configuration asks for it many times.
    """
    if path_or_run is None:
        return None
    try:
        path = weights_file(path_or_run)
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
