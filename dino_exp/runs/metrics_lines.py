"""`metrics.jsonl`: one JSON object per logged step, and how it is read where lines are damaged."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dino_exp.metrics import KNN, METRICS
from dino_exp.runs import former_names
from dino_exp.runs.run_files import (
    LARGEST_COUNT,
    NUMBER,
    TEXT,
    Kind,
    checked,
    is_count,
    open_file,
    parse_json,
    read_file,
)

MOST_BYTES_OF_A_LINE = 2**20
COMPLETE_UP_TO = 200_000
"""Files up to this size are read completely; of larger ones only as many lines as are drawn."""

LINE = {
    **{key: NUMBER.or_null() for metric in METRICS for key in metric.keys},
    "step": Kind("a whole number", is_count),
    "verdict": TEXT.or_null(),
}


class Lines(NamedTuple):
    """What can be read of a metrics.jsonl."""

    records: list[dict[str, Any]]
    """The lines in present names, in the order of the file."""
    broken: list[int]
    """For each other line, the number of records before it."""
    cut: bool
    """Whether the last line is incomplete, as a kill leaves it; it is not among the broken ones."""

    def gaps(self) -> list[tuple[int, int]]:
        """Return the first and last step that broken lines may have had, for each place of such lines."""
        steps = [-1, *(record["step"] for record in self.records), LARGEST_COUNT]
        return [(steps[before] + 1, steps[before + 1] - 1) for before in dict.fromkeys(self.broken)]


def parse_lines(texts: Iterable[bytes]) -> Lines:
    """Return what the lines of a metrics.jsonl say, each of them with its line break."""
    found = Lines([], [], False)
    for text in texts:
        if not text.strip():
            continue
        if (record := parse_line(text)) is not None:
            found.records.append(record)
        elif text.endswith(b"\n"):
            found.broken.append(len(found.records))
        else:
            found = found._replace(cut=True)
    return found


def parse_line(text: bytes) -> dict[str, Any] | None:
    """Return a line of a metrics.jsonl in present names; None without a step."""
    try:
        record = parse_json(text)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    record = checked(former_names.TABLE.present_record(record), LINE, "", [])
    if "step" not in record:
        return None
    return record | {"step": int(record["step"])}


def read_lines(path: Path) -> Lines:
    """Return what can be read of a metrics.jsonl; a missing file has no lines.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    problems: list[str] = []
    found = read_file(path, problems, lambda path: parse_lines(each_line(path)), Lines([], [], False))
    return found._replace(broken=[0]) if problems else found


def read_metrics(
    path: Path, problems: list[str] | None = None, most: int | None = None
) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl in present names, in the order of their steps.

    Broken lines are dropped and counted.

    Args:
        path: the file; if it is missing, there are no records.
        problems: gets a line if something was skipped.
        most: return about this many evenly spaced records, with the first, the last, and some with a k-NN.
            Only that many lines of a large file are read, so that a thousand runs take seconds.

    Raises:
        UnreadableError: The system does not let us read it.
    """
    said: list[str] = [] if problems is None else problems
    found = read_file(path, said, lambda path: parse_lines(each_line(path, most)), Lines([], [], False))
    if broken := len(found.broken) + found.cut:
        lines = "1 line" if broken == 1 else f"{broken} lines"
        said.append(f"{path.name}: skipped {lines}, incomplete or without a step.")
    records = sorted(found.records, key=lambda record: record["step"])
    return records if most is None else _some(records, most)


def each_line(path: Path, most: int | None = None) -> Iterator[bytes]:
    """Yield the lines of a file, of a large one about `most` spaced ones; a very long line in pieces."""
    with open_file(path) as file:
        if most is None or os.fstat(file.fileno()).st_size <= COMPLETE_UP_TO:
            while text := file.readline(MOST_BYTES_OF_A_LINE):
                yield text
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield from _spaced(content, most)


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


def _spaced(content: mmap.mmap, most: int) -> Iterator[bytes]:
    size = len(content)
    wanted = {size * index // most for index in range(most)} | {size - 1}
    names = [f'"{name}"'.encode() for name in former_names.TABLE.names_of_metric(KNN.key)]
    marks = [find(name) for name in names for find in (content.find, content.rfind)]
    wanted |= {mark for mark in marks if mark >= 0}
    starts = sorted({content.rfind(b"\n", 0, position) + 1 for position in wanted})
    for start in starts:
        end = content.find(b"\n", start)
        stop = end + 1 if end >= 0 else size
        yield content[start : min(stop, start + MOST_BYTES_OF_A_LINE)]
