"""The file of all results, complete after every row whatever ends the program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dino_exp.atomic import write_text_atomically
from dino_exp.runs.run_directory import to_json

Row = dict[str, Any]
"""One line of a section's table. `note` says why figures are missing; lists are only in the file."""


class Results:
    """Rows by section in `path`; the command and the section that runs write in turn, never at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, about: Row) -> None:
        """Begin an empty file, with `about` at its top."""
        self._write({**about, "sections": {}})

    def read(self) -> dict[str, Any]:
        """Return the content: `sections`, each with `rows`, and when it has ended `seconds` and `note`."""
        content: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
        return content

    def add(self, section: str, row: Row) -> None:
        """Add a row to a section."""
        content = self.read()
        content["sections"].setdefault(section, {"rows": []})["rows"].append(row)
        self._write(content)

    def end(self, section: str, seconds: float, note: str) -> None:
        """Record how long a section took and, unless it is empty, what cut it short."""
        content = self.read()
        content["sections"].setdefault(section, {"rows": []}).update(seconds=round(seconds, 1), note=note)
        self._write(content)

    def rows(self, section: str) -> list[Row]:
        """Return the rows of a section, none if it has not run."""
        found: list[Row] = self.read()["sections"].get(section, {"rows": []})["rows"]
        return found

    def _write(self, content: dict[str, Any]) -> None:
        write_text_atomically(self.path, to_json(content, indent=1))
