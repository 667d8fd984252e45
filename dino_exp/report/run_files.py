"""Reading the files of a run that may be half-written, older or newer than this code, or not there."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dino_exp.config.stored import parse
from dino_exp.metrics import KNN
from dino_exp.runs import former_names

WHOLE_BYTES = 200_000
"""Files up to this size are read whole, of larger ones only as many lines as are drawn."""


def number(value: Any) -> float | None:
    """A finite number, or None for all else: null, NaN, text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, with a line in `problems` where it is broken."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {_one_line(error)}.")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds no JSON object.")
        return {}
    return content


def read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return a run's configuration as plain dictionaries in present names; empty where it is not readable."""
    try:
        return parse(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} cannot be read: {_one_line(error)}.")
        return {}


def read_lines(path: Path, problems: list[str], most: int | None = None) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl in present names, in the order of their steps.

    Broken lines are dropped and counted.

    Args:
        path: of the file; no file is no records.
        problems: gets a line where something was left out.
        most: with it, about so many evenly spaced records, the first and last among them, and some with a
            k-NN. Only so many lines of a large file are read, so that a thousand runs take seconds.
    """
    try:
        if most is None or path.stat().st_size <= WHOLE_BYTES:
            texts = path.read_bytes().splitlines()
        else:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                texts = list(_spaced(content, most))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {_one_line(error)}.")
        return []
    records, broken = [], 0
    for text in texts:
        record = _record(text)
        if record is not None:
            records.append(record)
        elif text.strip():
            broken += 1
    if broken:
        lines = "1 line" if broken == 1 else f"{broken} lines"
        problems.append(f"{path.name}: {lines} half-written or without a step, left out.")
    records.sort(key=lambda record: record["step"])
    return records if most is None else _some(records, most)


def _some(records: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most about `most` evenly spaced records, some of them with a k-NN, which is measured seldom."""
    if len(records) <= most + 3:  # as many as a large file is read at
        return records
    measured = [index for index, record in enumerate(records) if KNN.key in record]
    chosen = set(_evenly_spaced(len(records), most))
    chosen |= {measured[index] for index in _evenly_spaced(len(measured), max(2, most // 4))}
    return [records[index] for index in sorted(chosen)]


def _evenly_spaced(length: int, count: int) -> list[int]:
    """Evenly spaced places in a list, its ends among them."""
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
    starts = sorted({content.rfind(b"\n", 0, place) + 1 for place in wanted})
    for start in starts:
        end = content.find(b"\n", start)
        yield content[start : end if end >= 0 else size]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
