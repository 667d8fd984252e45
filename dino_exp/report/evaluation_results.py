"""What `evaluate.py` found, read from evaluations.json without trusting it, in tables and images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dino_exp.metrics import in_words
from dino_exp.report.evaluation_records import FILE, KINDS, Result, title

if TYPE_CHECKING:
    from dino_exp.report.run_data import RunData

MOST_IMAGES = 24
"""In a page; the others are linked to."""


def percent(value: float | None) -> str:
    """86.8 %; – where there is none."""
    return "–" if value is None else f"{value:.1f}\N{NO-BREAK SPACE}%"


# ---- reading -----------------------------------------------------------------------------------------------


# ---- a run's page ------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A result in the table of a run's page."""

    title: str
    figures: list[str]
    """top-1, k = 20: 86.8 %"""
    of: str
    step_note: str
    """Where the run has gone on since."""
    data: str
    differs: str
    """From the lines that would look the same."""
    when: str


def by_evaluation(results: Iterable[Result]) -> list[Result]:
    """By evaluation, and the newest first."""
    kinds = list(KINDS)
    newest = list(results)[::-1]
    return sorted(newest, key=lambda each: kinds.index(each.evaluation) if each.evaluation in kinds else 99)


def result_lines(run: RunData) -> list[Line]:
    """A line per result."""
    ordered = by_evaluation(run.evaluations)
    return [
        Line(
            each.title,
            [f"{in_words(name)}: {percent(value)}" for name, value in each.figures.items()],
            each.of,
            step_note(each, run),
            each.data,
            differs(each, ordered),
            each.when,
        )
        for each in ordered
    ]


def step_note(result: Result, run: RunData) -> str:
    """Where the run is, if it is not where the result is of."""
    if result.step is None or run.step is None or result.step == run.step:
        return ""
    return f"the run's last step is {run.step:,}"


def differs(result: Result, among: Sequence[Result]) -> str:
    """What sets a result apart from those of the same evaluation, network and data."""
    alike = [
        each
        for each in among
        if (each.evaluation, each.of, each.data) == (result.evaluation, result.of, result.data)
    ]
    return ", ".join(
        f"{key} = {_short(result.circumstances[key])}"
        for key in differing_circumstances(alike)
        if key in result.circumstances
    )


def _short(text: str) -> str:
    """Of a long list the ends."""
    first, _, rest = text.partition(", ")
    return f"{first}, …, {rest.rpartition(', ')[2]}" if text.startswith("[") and len(text) > 30 else text


def differing_circumstances(results: Sequence[Result]) -> list[str]:
    """Keys that not all results have the same value of."""
    keys = dict.fromkeys(key for each in results for key in each.circumstances)
    return [key for key in keys if len({each.circumstances.get(key) for each in results}) > 1]


def collected_notes(run: RunData) -> list[tuple[str, str]]:
    """Whose notes, and the notes; each once."""
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
    """Something that an evaluation wrote."""

    title: str
    name: str
    """Relative to the run's folder."""
    path: Path


def files(run: RunData, problems: list[str]) -> tuple[list[File], list[File]]:
    """The images to show, and the files to link to.

    A file that several results name is the newest one's. What is not there, or not in the run's folder, gets
    a line in `problems`.
    """
    images: list[File] = []
    others: list[File] = []
    absent = []
    seen: set[str] = set()
    among = [each for each in run.evaluations if each.files]
    for each in by_evaluation(run.evaluations):
        for name in each.files:
            if name in seen:
                continue
            seen.add(name)
            path = run.path / name
            if not _is_inside(path, run.path):
                absent.append(name)
            elif path.suffix.lower() == ".png" and len(images) < MOST_IMAGES:
                images.append(File(f"{_whose(each, among)}: {path.stem.replace('_', ' ')}", name, path))
            else:
                others.append(File(_whose(each, among), name, path))
    if absent:
        more = f" and {len(absent) - 4} more" if len(absent) > 4 else ""
        problems.append(f"Named in {FILE}, but not in the run's folder: {', '.join(absent[:4])}{more}.")
    return images, others


def _whose(result: Result, among: Sequence[Result]) -> str:
    """Attention maps, and of what where there are others of the evaluation."""
    if sum(each.evaluation == result.evaluation for each in among) < 2:
        return result.title
    parts = (result.of, result.data, differs(result, among))
    return f"{result.title} ({', '.join(part for part in parts if part and part != '–')})"


def _is_inside(path: Path, folder: Path) -> bool:
    try:
        # first, because it answers for every text, with NUL in it too
        return path.exists() and path.resolve().is_relative_to(folder.resolve())
    except OSError:  # too long for a name, or nothing that may be looked at
        return False
