"""Tolerant readers of a run's files, which may be missing, incomplete, or of another version."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml

from dino_exp.config.stored import parse
from dino_exp.metrics import KNN
from dino_exp.runs import former_names

T = TypeVar("T")

COMPLETE_UP_TO = 200_000
"""Files up to this size are read completely; of larger ones only as many lines as are drawn."""


def number(value: Any) -> float | None:
    """Return a finite number as a float, and None for all else: null, NaN, text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


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


def read_file(path: Path, problems: list[str], read: Callable[[Path], T], nothing: T) -> T:
    """Return what `read` makes of a file; `nothing` if it is missing, or broken, which adds to `problems`.

    A link to a file elsewhere is not followed, and a pipe or a device is not opened.
    """
    try:
        if path.exists() and not is_file_inside(path, path.parent):
            problems.append(
                f"{path.name} is no file, or a link to one outside of the folder; it is not read."
            )
            return nothing
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        return nothing
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        words = " ".join(str(error).split())[:200] or type(error).__name__
        problems.append(f"{path.name} cannot be read: {words}.")
        return nothing


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file; empty if it is missing, or broken, which adds to `problems`."""
    content: Any = read_file(path, problems, lambda path: json.loads(path.read_bytes()), {})
    if not isinstance(content, dict):
        problems.append(f"{path.name} is not a JSON object.")
        return {}
    return content


def read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return a run's configuration as plain dictionaries in present names; empty where it is not readable."""
    return read_file(path, problems, lambda path: parse(path.read_bytes()), {})


def read_lines(path: Path, problems: list[str], most: int | None = None) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl in present names, in the order of their steps.

    Broken lines are dropped and counted.

    Args:
        path: the file; if it is missing, there are no records.
        problems: gets a line if something was skipped.
        most: return about this many evenly spaced records, with the first, the last, and some with a k-NN.
            Only that many lines of a large file are read, so that a thousand runs take seconds.
    """
    texts: list[bytes] = read_file(path, problems, lambda path: _texts(path, most), [])
    found = [_record(text) for text in texts if text.strip()]
    records = [record for record in found if record is not None]
    if broken := len(found) - len(records):
        lines = "1 line" if broken == 1 else f"{broken} lines"
        problems.append(f"{path.name}: skipped {lines}, incomplete or without a step.")
    records.sort(key=lambda record: record["step"])
    return records if most is None else _some(records, most)


def _texts(path: Path, most: int | None) -> list[bytes]:
    if most is None or path.stat().st_size <= COMPLETE_UP_TO:
        return path.read_bytes().splitlines()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return list(_spaced(content, most))


def _some(records: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return about `most` evenly spaced records, and some with a k-NN, which is measured seldom."""
    if len(records) <= most + 3:  # as many as a large file is read at
        return records
    measured = [index for index, record in enumerate(records) if KNN.key in record]
    chosen = set(evenly_spaced(len(records), most))
    chosen |= {measured[index] for index in evenly_spaced(len(measured), max(2, most // 4))}
    return [records[index] for index in sorted(chosen)]


def evenly_spaced(length: int, count: int) -> list[int]:
    """Return evenly spaced indices of a list, with its first and last."""
    if length <= count:
        return list(range(length))
    return [round(index * (length - 1) / (count - 1)) for index in range(count)]


def _record(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    record = former_names.TABLE.present_record(record)
    return record if number(record.get("step")) is not None else None


def _spaced(content: mmap.mmap, most: int) -> Iterator[bytes]:
    size = len(content)
    wanted = {size * index // most for index in range(most)} | {size - 1}
    names = [f'"{name}"'.encode() for name in former_names.TABLE.names_of_metric(KNN.key)]
    marks = [find(name) for name in names for find in (content.find, content.rfind)]
    wanted |= {mark for mark in marks if mark >= 0}
    starts = sorted({content.rfind(b"\n", 0, position) + 1 for position in wanted})
    for start in starts:
        end = content.find(b"\n", start)
        yield content[start : end if end >= 0 else size]
