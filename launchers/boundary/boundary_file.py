"""`boundary.json` in a sweep's folder: the runs of each search for a boundary, and what they have shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dino_exp.atomic import write_text_atomically
from dino_exp.regular_file import is_plain_name
from dino_exp.runs.run_directory import FORMAT, refuse_newer, to_json
from dino_exp.runs.run_files import (
    COUNT,
    FLAG,
    NUMBER,
    TABLE,
    TEXT,
    TEXTS,
    Kind,
    checked,
    read_object,
    set_aside,
)
from launchers.boundary.boundary_axis import Axis

FILE = "boundary.json"
TABLES = Kind(
    "a list of JSON objects",
    lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value),
)
SEARCH = {
    "axes": TABLES,
    "runs": TABLES,
    "before": COUNT,
    "lines": TEXTS,
    "maps": TABLES,
    "next": TABLES,
    "end": TEXT,
}
RUN = {
    "values": TABLE,
    "seed": COUNT.or_null(),
    "batch": COUNT,
    "run": TEXT,
    "verdict": TEXT,
    "trains": FLAG.or_null(),
    "information": NUMBER.or_null(),
    "problem": TEXT,
}


@dataclass
class Tried:
    """A run of a search."""

    values: dict[str, float]
    """Its value of each axis."""
    batch: int
    """Number of the batch that it was proposed in, from 0."""
    seed: int | None = None
    """The seed of a repetition; None has the seed that all others share."""
    run: str = ""
    """Its run id."""
    verdict: str = ""
    trains: bool | None = None
    """Whether it trains; None while that is unknown."""
    information: float | None = None
    """The teacher's mutual information at its end, as a share of ln K."""
    problem: str = ""
    """Why it has no verdict: it failed, or its values do not go together."""


@dataclass
class Boundary:
    """A search, by its configuration and keys."""

    axes: list[Axis] = field(default_factory=list)
    runs: list[Tried] = field(default_factory=list)
    before: int = 0
    """Number of runs that were made for other intervals."""
    lines: list[str] = field(default_factory=list)
    """The boundary in words."""
    maps: list[dict[str, Any]] = field(default_factory=list)
    """Over the first two axes, at values of the third: `at`, and rows of `probability` and `side`."""
    next: list[dict[str, float]] = field(default_factory=list)
    """Where the next runs would be."""
    end: str = ""
    """Why the search has ended; empty while it goes on."""

    def inside(self) -> list[Tried]:
        """Return the runs whose values are in the present intervals."""
        return [
            run
            for run in self.runs
            if all(
                axis.key in run.values and axis.low <= run.values[axis.key] <= axis.high for axis in self.axes
            )
        ]


def read_boundaries(folder: Path, problems: list[str]) -> dict[str, Boundary]:
    """Return the searches of a folder by name, without what is damaged, which adds to `problems`.

    Raises:
        UserError: a newer version wrote the file, or the system does not let us read it.
    """
    path = folder / FILE
    content = read_object(path, {"searches": TABLE}, problems)
    refuse_newer(content, path)
    found = {}
    for name, fields in content.get("searches", {}).items():
        try:
            if not is_plain_name(name):  # figures are files of this name
                raise ValueError("not the name of a search")
            found[name] = _boundary(fields, problems)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            problems.append(f"{FILE}: {name} is damaged ({type(error).__name__}: {error}).")
    return found


def _boundary(fields: Mapping[str, Any], problems: list[str]) -> Boundary:
    known = checked({key: fields[key] for key in SEARCH if key in fields}, SEARCH, FILE, problems)
    axes = [Axis.from_fields(each) for each in known.pop("axes")]
    runs = []
    for each in known.pop("runs", []):
        run = checked({key: each[key] for key in RUN if key in each}, RUN, FILE, problems)
        if run.keys() >= {"values", "batch"} and all(map(NUMBER.fits, run["values"].values())):
            runs.append(Tried(**run))
    return Boundary(axes, runs, **known)


def write_boundaries(folder: Path, boundaries: Mapping[str, Boundary], problems: Sequence[str]) -> None:
    """Write the searches of a folder atomically; a damaged file is kept beside it."""
    path = folder / FILE
    if problems:
        set_aside(path)
    searches = {
        name: asdict(boundary) | {"axes": [axis.as_fields() for axis in boundary.axes]}
        for name, boundary in boundaries.items()
    }
    write_text_atomically(path, to_json({"format": FORMAT, "searches": searches}))
