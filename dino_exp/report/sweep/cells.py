"""Cells of a map over two axes of a sweep, and groups of runs that differ in the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from statistics import fmean, stdev

from dino_exp.report.run_data import SEED, RunData, SweepData
from dino_exp.report.values import Value, value_text

MOST_TICKS = 24
"""Values that an axis shows one by one; more numbers are grouped into ranges."""
RANGES = 12
FEW = 6
"""The same, in a map over two axes, where most runs have a value of their own, as those of a search."""
MOST_CELLS = 8_000
"""Cells of the maps over all pairs of axes together."""
MIXED = "mixed"
"""Outcome of a cell whose runs have different outcomes."""


@dataclass
class Cell:
    """The runs in one cell of a map."""

    x: str
    y: str
    xi: int
    yi: int
    runs: list[RunData] = field(default_factory=list)

    def mean(self, measure: Callable[[RunData], float | None]) -> tuple[float | None, float | None, int]:
        """Return what `spread` returns, of a measure of the runs."""
        return spread([measure(run) for run in self.runs])

    @property
    def outcome(self) -> str:
        """The outcome of more than half of the runs, or `mixed`."""
        word, number = Counter(run.outcome for run in self.runs).most_common(1)[0]
        return word if 2 * number > len(self.runs) else MIXED

    @property
    def outcomes(self) -> str:
        """All outcomes, as `outcomes` returns them."""
        return outcomes(self.runs)


def outcomes(runs: Sequence[RunData]) -> str:
    """Return the outcomes of runs: healthy; or with their numbers: 2 healthy, 1 slow."""
    counts = Counter(run.outcome for run in runs).most_common()
    return ", ".join(word if len(counts) == 1 else f"{number} {word}" for word, number in counts)


def spread(values: Sequence[float | None]) -> tuple[float | None, float | None, int]:
    """Return mean, standard deviation (None for fewer than two) and number of the known values."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None, 0
    return fmean(known), stdev(known) if len(known) > 1 else None, len(known)


class Ticks:
    """Positions along an axis: its values, or ranges if there are too many numbers."""

    def __init__(self, values: Sequence[Value], most: int = MOST_TICKS, ranges: int = RANGES) -> None:
        numbers = [value for value in values if isinstance(value, float)]
        words = [value for value in values if not isinstance(value, float)]
        self.ranged = len(values) > most and len(numbers) > ranges
        self.edges: list[float] = _edges(numbers, ranges) if self.ranged else []
        if self.ranged:
            self.labels = [f"{low} – {high}" for low, high in pairwise(_rounded(self.edges))] + words
        else:
            self.labels = [value_text(value) for value in values]
        self.labels = self.labels if len(self.labels) <= most else [*self.labels[: most - 1], "others"]

    def of(self, value: Value) -> int:
        """Return the position of a value."""
        if self.ranged and isinstance(value, float):
            inside = sum(value >= edge for edge in self.edges[1:-1])
            return min(inside, len(self.edges) - 2)
        text = value_text(value)
        return self.labels.index(text) if text in self.labels else len(self.labels) - 1


def _edges(numbers: Sequence[float], count: int) -> list[float]:
    """Return the edges of even ranges.

    If the numbers, or as of momenta what is left to 1, span more than a factor of 30, its logarithm is even.
    """
    low, high = min(numbers), max(numbers)
    shares = [index / count for index in range(count)]
    factor = high / low if low > 0 else 1
    rest = (1 - low) / (1 - high) if low >= 0 and high < 1 else 1
    if rest > max(factor, 30):
        return [1 - (1 - low) / rest**share for share in shares] + [high]
    if factor > 30:
        return [low * factor**share for share in shares] + [high]
    return [low + (high - low) * share for share in shares] + [high]


def _rounded(edges: Sequence[float]) -> list[str]:
    """Return edges with three digits, or as many as tell them well apart: 0.99 and 0.9998."""
    least = min(high - low for low, high in pairwise(edges)) / 10
    for digits in range(3, 18):
        texts = [f"{edge:.{digits}g}" for edge in edges]
        if all(abs(float(text) - edge) <= least for text, edge in zip(texts, edges, strict=True)):
            break
    return texts


def map_axes(sweep: SweepData) -> list[str]:
    """Return the axes that maps can have; seeds last, because one averages over them."""
    return sorted(sweep.axes, key=lambda key: key == SEED)


def pairs(sweep: SweepData) -> Sequence[tuple[str, str | None]]:
    """Return pairs of axes for maps, the first to be shown first; with one axis, that axis alone.

    There are as many pairs as a page can hold, beginning with all pairs of the first axes.
    """
    axes = map_axes(sweep)
    if len(axes) < 2:
        return [(axis, None) for axis in axes]
    at_once = sorted(combinations(range(len(axes)), 2), key=lambda pair: pair[::-1])
    most = max(1, MOST_CELLS // len(sweep.runs))
    return [(axes[first], axes[second]) for first, second in at_once[:most]]


def gather(
    sweep: SweepData, x: str, y: str | None, most: int = MOST_TICKS, ranges: int = RANGES
) -> list[Cell]:
    """Return the cells that have runs, row by row; each run is in one cell."""

    def ticks(axis: str) -> Ticks:
        values = sweep.axes[axis]
        scattered = y is not None and 2 * len(values) > len(sweep.runs)
        return Ticks(values, FEW, FEW) if scattered else Ticks(values, most, ranges)

    columns, rows = ticks(x), ticks(y) if y else None
    cells: dict[tuple[int, int], Cell] = {}
    for run in sweep.runs:
        xi = columns.of(run.values[x])
        yi = rows.of(run.values[y]) if rows and y else 0
        cell = cells.setdefault((yi, xi), Cell(columns.labels[xi], rows.labels[yi] if rows else "", xi, yi))
        cell.runs.append(run)
    return [cells[position] for position in sorted(cells)]


def averaged_over(sweep: SweepData, x: str, y: str | None) -> list[str]:
    """Return the axes that a map over x and y does not show."""
    return [key for key in sweep.axes if key not in (x, y)]


def seed_groups(sweep: SweepData) -> list[tuple[str, list[RunData]]]:
    """Return groups of runs that differ only in the seed, each with the values of the other axes.

    Empty if no group has two runs.
    """
    if SEED not in sweep.axes:
        return []
    groups: dict[tuple[Value, ...], list[RunData]] = {}
    others = [key for key in sweep.axes if key != SEED]
    for run in sweep.runs:
        groups.setdefault(tuple(run.values[key] for key in others), []).append(run)
    if all(len(runs) < 2 for runs in groups.values()):
        return []
    return [(" · ".join(map(value_text, values)), runs) for values, runs in groups.items()]


def short_heads(keys: Sequence[str]) -> list[str]:
    """Return the short names of keys, where they are distinct."""
    names = [short(key) for key in keys]
    return [key if names.count(name) > 1 else name for key, name in zip(keys, names, strict=True)]


def short(key: str) -> str:
    """Return the last part of a key: teacher_temp of loss.teacher_temp"""
    return key.rpartition(".")[2]
