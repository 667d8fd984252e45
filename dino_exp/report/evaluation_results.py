"""Results of `evaluate.py` as tables and images of a run's page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dino_exp.metrics import in_words
from dino_exp.report.evaluation_records import FILE, KINDS, Result, title
from dino_exp.runs.run_files import is_inside

if TYPE_CHECKING:
    from dino_exp.report.run_data import RunData

MOST_IMAGES = 24
"""Images shown on a page; the page links to all others."""


def percent(value: float | None) -> str:
    """Return a value as text: 86.8 %; – without a value."""
    return "–" if value is None else f"{value:.1f}\N{NO-BREAK SPACE}%"


class Line(NamedTuple):
    """A row in the table of results."""

    title: str
    figures: list[str]
    """Texts such as top-1, k = 20: 86.8 %"""
    subject: str
    step_note: str
    """The run's last step, if the result is of another."""
    data: str
    differs: str
    """Circumstances that differ from those of otherwise equal lines."""
    when: str


def by_evaluation(results: Iterable[Result]) -> list[Result]:
    """Return results grouped by evaluation, the newest first."""
    kinds = list(KINDS)
    newest = list(results)[::-1]
    return sorted(newest, key=lambda each: kinds.index(each.evaluation) if each.evaluation in kinds else 99)


def result_lines(run: RunData) -> list[Line]:
    """Return a line for each result of a run."""
    ordered = by_evaluation(run.evaluations)
    return [
        Line(
            each.title,
            [f"{in_words(name)}: {percent(value)}" for name, value in each.figures.items()],
            each.subject,
            step_note(each, run),
            each.data,
            differs(each, ordered),
            each.when,
        )
        for each in ordered
    ]


def step_note(result: Result, run: RunData) -> str:
    """Return a note with the run's last step; empty if the result is of that step."""
    known = result.step is not None and run.step is not None
    return f"the run's last step is {run.step:,}" if known and result.step != run.step else ""


def differs(result: Result, among: Sequence[Result]) -> str:
    """Return how a result differs from others of the same evaluation, network and data."""
    named = attrgetter("evaluation", "subject", "data")
    keys = differing_circumstances([each for each in among if named(each) == named(result)])
    own = result.circumstances
    return ", ".join(f"{key} = {_short(own[key])}" for key in keys if key in own)


def _short(text: str) -> str:
    """Return a list with its middle elided, if it is long."""
    first, _, rest = text.partition(", ")
    return f"{first}, …, {rest.rpartition(', ')[2]}" if text.startswith("[") and len(text) > 30 else text


def differing_circumstances(results: Sequence[Result]) -> list[str]:
    """Return the keys in which results differ."""
    keys = dict.fromkeys(key for each in results for key in each.circumstances)
    return [key for key in keys if len({each.circumstances.get(key) for each in results}) > 1]


def collected_notes(run: RunData) -> list[tuple[str, str]]:
    """Return each note once, with the evaluations that it belongs to."""
    found: dict[tuple[str, str], list[Result]] = {}
    for each in by_evaluation(run.evaluations):
        for note in each.notes:
            found.setdefault((each.evaluation, note), []).append(each)
    counts = Counter(each.evaluation for each in run.evaluations)
    rows = []
    for (name, note), of in found.items():
        whose = [title(name)] if len(of) == counts[name] else [_whose(each, run.evaluations) for each in of]
        rows.append(("; ".join(whose), note))
    return rows


class File(NamedTuple):
    """A file that an evaluation wrote."""

    title: str
    name: str
    """Path relative to the run's folder."""
    path: Path


def files(run: RunData, problems: list[str]) -> tuple[list[File], list[File]]:
    """Return the images to show, and the files to link to.

    A file that several results name belongs to the newest. Files that are missing, or outside the run's
    folder, get a line in `problems`.
    """
    images: list[File] = []
    others: list[File] = []
    missing = []
    among = [each for each in run.evaluations if each.files]
    owners: dict[str, Result] = {}
    for each in by_evaluation(among):
        for name in each.files:
            owners.setdefault(name, each)
    for name, owner in owners.items():
        path = run.path / name
        if not is_inside(path, run.path):
            missing.append(name)
        elif path.suffix.lower() == ".png" and len(images) < MOST_IMAGES:
            images.append(File(f"{_whose(owner, among)}: {path.stem.replace('_', ' ')}", name, path))
        else:
            others.append(File(_whose(owner, among), name, path))
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        problems.append(
            f"{FILE} names files that are not in the run's folder: {', '.join(missing[:4])}{more}."
        )
    return images, others


def _whose(result: Result, among: Sequence[Result]) -> str:
    """Return the title of a result, with details if there are several of its evaluation."""
    if sum(each.evaluation == result.evaluation for each in among) < 2:
        return result.title
    parts = (result.subject, result.data, differs(result, among))
    return f"{result.title} ({', '.join(part for part in parts if part and part != '–')})"
