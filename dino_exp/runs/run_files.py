"""Readers of the files of runs and sweeps, whoever wrote them and whatever has happened to them since.

Nothing else of the project parses these files. A file may be missing, empty, cut, of zeros, of another
version, or made to exhaust the reader: what cannot be read, or has a wrong type, counts as missing and is
named in `problems`. Whoever writes such a file anew keeps the damaged one beside it (`set_aside`).
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

from dino_exp.errors import UserError, in_words
from dino_exp.metrics import METRICS
from dino_exp.regular_file import open_regular

T = TypeVar("T")

MOST_BYTES = 32 * 2**20
"""Largest file that is read at once: the manifest of some 50,000 runs."""
DEEPEST = 32
"""Most levels of a file's content; ours have up to 6."""
LARGEST_COUNT = 2**53
LATEST = 1e11
"""Latest time in seconds since 1970, in the year 5138; Python's calendar ends later."""
ENDED_WELL = ("finished", "collapsed")
STATES = ("pending", "running", "preempted", *ENDED_WELL, "failed", "cancelled")


class UnreadableError(UserError):
    """A file that this user or this machine cannot read now, though it may be whole."""


# ---- types of fields -----------------------------------------------------------------------------------


class Kind(NamedTuple):
    """What a field must be."""

    words: str
    fits: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """Return the kind of a field that may also be null."""
        return Kind(f"{self.words} or null", lambda value: value is None or self.fits(value))


def number(value: Any) -> float | None:
    """Return a finite number as a float, and None for all else: null, NaN, text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def is_count(value: Any) -> bool:
    """Return whether a value is a whole number from 0 that a float can hold exactly."""
    known = number(value)
    return known is not None and 0 <= known <= LARGEST_COUNT and known.is_integer()


def is_time(value: Any) -> bool:
    """Return whether a value is a time in seconds since 1970."""
    known = number(value)
    return known is not None and 0 <= known <= LATEST


def is_attempt(value: Any) -> bool:
    """Return whether a value is an attempt in status.json."""
    if not isinstance(value, dict) or not is_time(value.get("began")):
        return False
    until = value.get("until")
    return (until is None or is_time(until)) and is_count(value.get("processes", 1))


TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = Kind(
    "a list of texts", lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value)
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number", lambda value: isinstance(value, int) and is_count(value))
NUMBER = Kind("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool))
TIME = Kind("a time in seconds since 1970", is_time)
SECONDS = Kind("a number of seconds", is_time)
TABLE = Kind("a JSON object", lambda value: isinstance(value, dict))
STATE = Kind(f"one of {', '.join(STATES)}", lambda value: isinstance(value, str) and value in STATES)
ATTEMPTS = Kind("a list of attempts", lambda value: isinstance(value, list) and all(map(is_attempt, value)))

STATUS = {
    "format": NUMBER,
    "state": STATE,
    "step": COUNT,
    "total_steps": COUNT,
    "heartbeat": TIME,
    "seconds": SECONDS,
    "attempt": COUNT,
    "attempts": ATTEMPTS,
    "host": TEXT,
    "pid": COUNT,
    "slurm_job_id": TEXT.or_null(),
    "tracker_id": TEXT,
    "run_id": TEXT,
    "git_revision": TEXT.or_null(),
    "git_dirty": FLAG.or_null(),
    "plugins": TABLE,
}
SUMMARY = {
    "state": STATE,
    "verdict": TEXT,
    "evidence": TEXT,
    "steps": COUNT,
    "final": TABLE,
    "environment": TABLE,
    "wall_seconds": NUMBER.or_null(),
    **{key: NUMBER.or_null() for metric in METRICS for key in metric.keys},
}


def checked(
    content: Mapping[str, Any], kinds: Mapping[str, Kind], where: str, problems: list[str]
) -> dict[str, Any]:
    """Return the fields that are what they must be, and those of which nothing is known; name the others.

    A null that must not be is a missing field.
    """
    result = {}
    for key, value in content.items():
        if key not in kinds or kinds[key].fits(value):
            result[key] = value
        elif value is not None:
            problems.append(f"{where}: {key} = {shown(value)} is not {kinds[key].words}.")
    return result


def shown(value: Any) -> str:
    """Return a value as a short text."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:36]} ..."


# ---- entire files --------------------------------------------------------------------------------------


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path exists, and is in a folder when all links are followed."""
    try:
        # `exists` first, because it accepts any text, including NUL
        return path.exists() and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # the name is too long, access is denied, or links lead round in a circle
        return False


def is_file_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a file in a folder when all links are followed: what a page may show."""
    return is_inside(path, folder) and path.is_file()


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    A pipe or device, which may never end, and a link to another folder are a ValueError.
    """
    if path.is_symlink() and not is_inside(path, path.parent):
        raise ValueError("a link to another folder, which is not followed")
    try:
        return open_regular(path)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ValueError(error.strerror) from error
        raise


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it is missing, or cannot be read.
        ValueError: it is larger than `most` bytes, or no regular file.
    """
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise ValueError(f"larger than {most / 2**20:g} MiB")
        return file.read(most)


def parse_json(text: bytes) -> Any:
    """Return what a JSON text says; integers of 19 digits or more are floats.

    Raises:
        ValueError: it is not JSON, or its levels are more than `DEEPEST`.
    """
    words = text.decode("utf-8-sig", "replace")
    try:
        value = json.loads(words, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if words.count("[") + words.count("{") > DEEPEST and is_deep(value):
        raise ValueError("nested too deeply")
    return value


def is_deep(value: Any) -> bool:
    """Return whether a value of dictionaries and lists has more than `DEEPEST` levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for node in level
            if isinstance(node, (dict, list))
            for item in (node.values() if isinstance(node, dict) else node)
        ]
    return bool(level)


def read_file(path: Path, problems: list[str], read: Callable[[Path], T], nothing: T) -> T:
    """Return what `read` makes of a file; `nothing` if it is missing, or damaged, which adds to `problems`.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        return nothing
    except OSError as error:
        raise UnreadableError(f"{in_words(error)}.") from None
    except ValueError as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        problems.append(f"{path.name} cannot be read: {words}.")
        return nothing


def read_object(path: Path, kinds: Mapping[str, Kind], problems: list[str]) -> dict[str, Any]:
    """Return the fields of a JSON object in a file; none if the file is missing or damaged.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    content: Any = read_file(path, problems, lambda path: parse_json(read_bytes(path)), {})
    if not isinstance(content, dict):
        problems.append(f"{path.name} is not a JSON object.")
        return {}
    return checked(content, kinds, path.name, problems)


def if_readable(read: Callable[[], T], nothing: T, problems: list[str]) -> T:
    """Return what `read` returns; `nothing`, and a line in `problems`, if the system refuses the file."""
    try:
        return read()
    except UnreadableError as error:
        problems.append(str(error))
        return nothing


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that nothing of it is lost, and return the new path: status.json.damaged."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    return path.rename(aside)
