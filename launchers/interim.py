"""The values of a search's objective while a run trains, from its metrics.jsonl as that grows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dino_exp.metrics import BEST_KNN, KNN
from dino_exp.runs.metrics_lines import parse_line
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.runs.run_files import MOST_BYTES, if_readable, number, open_file

PARTS = 10
"""Parts of a training, of which each but the last has one value at most: as many as pruning needs."""


@dataclass
class Interim:
    """The values that a run has had before its end, the first one of each tenth of its steps."""

    directory: RunDirectory
    objective: str
    values: dict[int, float] = field(default_factory=dict)
    """By tenth, from 1: of the lines from a tenth of the steps on."""
    _best: float = -math.inf
    _file: int = 0
    """Inode; a resume replaces the file by one without the steps that come again."""
    _read: int = 0
    """Bytes that were read."""

    def read(self) -> list[float]:
        """Return the values so far, in their order."""
        status: dict[str, Any] = if_readable(lambda: self.directory.read_status(), {}, [])
        if steps := status.get("total_steps"):
            for line in self._new_lines():
                self._add(line, steps)
        return list(self.values.values())

    def _add(self, line: dict[str, Any], steps: int) -> None:
        value = number(line.get(KNN.key if self.objective == BEST_KNN.key else self.objective))
        if value is None:
            return
        if self.objective == BEST_KNN.key:
            value = self._best = max(self._best, value)
        part = PARTS * line["step"] // steps
        if 0 < part < PARTS:
            self.values.setdefault(part, value)

    def _new_lines(self) -> Iterator[dict[str, Any]]:
        try:
            with open_file(self.directory.metrics_file) as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self._file or found.st_size < self._read:
                    self._file, self._read = found.st_ino, 0
                file.seek(self._read)
                complete, line_break, _ = file.read(MOST_BYTES).rpartition(b"\n")
        except (OSError, ValueError):  # not there yet, or not readable now
            return
        self._read += len(complete) + len(line_break)
        yield from filter(None, map(parse_line, complete.split(b"\n")))
