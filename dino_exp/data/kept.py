"""Arrays that are made once, and kept in the cache for all processes and runs."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock

from dino_exp.atomic import write_atomically
from dino_exp.errors import in_words
from dino_exp.paths import cache_root

log = logging.getLogger(__name__)

Arrays = TypeVar("Arrays", bound=Any)
"""A named tuple of arrays."""


def kept(name: str, kind: type[Arrays], make: Callable[[], Arrays], what: str) -> Arrays:
    """Return the arrays in the file `name` of `cache_root()`, which are made if they are not there.

    Of several processes the first makes them and the others wait. Where they cannot be kept, a line says so.

    Args:
        what: what they are, for that line.
    """
    path, made = cache_root() / name, None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            found = read_arrays(path, kind)
            if found is None:
                found = made = make()
                write_atomically(path, lambda file: np.savez(file, **made._asdict()))
            return found
    except OSError as error:
        log.warning("%s is not kept: %s.", what.capitalize(), in_words(error))
        return make() if made is None else made


def read_arrays(path: Path, kind: type[Arrays]) -> Arrays | None:
    """Return the arrays in a file; None where it is missing, or is damaged, which a line says."""
    try:
        # opened here, because NumPy leaves the file of a damaged archive open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return kind(**arrays)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:  # cut short, or damaged
        log.warning("%s: damaged (%s). It is made again.", path, error)
        return None
