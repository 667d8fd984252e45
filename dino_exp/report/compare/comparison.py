"""Comparison of two runs or two sweeps: pairs of their runs, and what differs between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from dino_exp.config.identity import differing_keys
from dino_exp.config.stored import read_if_possible
from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.report.loading import load
from dino_exp.report.run_data import SEED, RunData
from dino_exp.report.sweep.axes import configured
from dino_exp.report.sweep.cells import outcomes, short, spread
from dino_exp.report.values import Value, config_text, value_text

MOST_ROWS = 40
"""Largest number of rows of a table in the terminal."""

Settings = tuple[tuple[str, Value], ...]
"""Values of a run on the axes of both sides, except the seed; keys in alphabetical order."""


@dataclass
class Pair:
    """Runs of A and of B with the same settings and any seed; one side may have none."""

    settings: Settings
    """Empty for two single runs."""
    a: list[RunData] = field(default_factory=list)
    b: list[RunData] = field(default_factory=list)
    differing: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Configuration keys that differ, with both values; without the seed, if a side has several."""

    @property
    def data_sets(self) -> tuple[Any, Any] | None:
        """What A and B were trained and evaluated on, if that differs: images, or by name data sets."""
        return self.differing.get("data_content") or self.differing.get("data.name")

    @property
    def of_two_data_sets(self) -> bool:
        """Whether A and B were trained and evaluated on different data sets."""
        return self.data_sets is not None

    @property
    def label(self) -> str:
        """The settings, e.g. loss.center_momentum=0.9 loss.teacher_temp=0.04."""
        return " ".join(f"{key}={value_text(value)}" for key, value in self.settings)

    @property
    def brief(self) -> str:
        """The settings in short, e.g. center_momentum=0.9 teacher_temp=0.04."""
        return " ".join(f"{short(key)}={value_text(value)}" for key, value in self.settings)

    @property
    def difference(self) -> float | None:
        """Mean k-NN of B minus that of A, in points; None if unknown or of two data sets."""
        a, b = knn(self.a)[0], knn(self.b)[0]
        return None if a is None or b is None or self.of_two_data_sets else b - a

    @property
    def standard_error(self) -> float | None:
        """Standard error of the difference, from the spread over seeds; None if a side has fewer than two."""
        (_, sd_a, n_a), (_, sd_b, n_b) = knn(self.a), knn(self.b)
        return None if sd_a is None or sd_b is None else math.hypot(sd_a / n_a**0.5, sd_b / n_b**0.5)


@dataclass
class Comparison:
    """Two folders and the pairs of their runs."""

    a: Path
    b: Path
    pairs: list[Pair]
    """The pairs, those with runs on both sides first."""
    problems: list[str] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, str]:
        """Names of the folders: enough of the last parts of their paths to tell them apart."""
        a, b = self.a.resolve().parts, self.b.resolve().parts
        count = next(count for count in range(1, len(a) + len(b)) if a[-count:] != b[-count:])
        return str(Path(*a[-count:])), str(Path(*b[-count:]))

    @property
    def both(self) -> list[Pair]:
        """The pairs with runs on both sides."""
        return [pair for pair in self.pairs if pair.a and pair.b]


def knn(runs: Sequence[RunData]) -> tuple[float | None, float | None, int]:
    """Return mean, standard deviation (None for fewer than two) and number of the runs' k-NN."""
    return spread([run.knn for run in runs])


def compare(a: Path, b: Path) -> Comparison:
    """Pair the runs of two folders.

    Raises:
        UserError: One of them is neither a run nor a sweep, or both are the same.
    """
    if a.resolve() == b.resolve():
        raise UserError(f"{a}: given twice; give two folders.")
    comparison = Comparison(a, b, [])
    sides = [
        _runs(path, name, comparison.problems) for path, name in zip((a, b), comparison.names, strict=True)
    ]
    keys = sorted({key for runs in sides for run in runs for key in run.values} - {SEED})
    first, second = (_grouped(runs, keys) for runs in sides)
    pairs = [Pair(each, first.get(each, []), second.get(each, [])) for each in {**first, **second}]
    comparison.pairs = sorted(pairs, key=lambda pair: not (pair.a and pair.b))
    for pair in comparison.both:
        _find_differences(pair, comparison.problems)
    if not comparison.both:
        alike = f"no run of A has the same {', '.join(keys)} as one of B"
        comparison.problems.append(f"There are no pairs: {alike if all(sides) else 'a side has no runs'}.")
    return comparison


def _runs(path: Path, name: str, problems: list[str]) -> list[RunData]:
    data = load(path)
    problems += [f"{name}: {problem}" for problem in data.problems]
    if isinstance(data, RunData):
        return [data]
    problems += [f"{name}: {run.label}: {problem}" for run in data.runs for problem in run.problems]
    return data.runs


def _grouped(runs: Sequence[RunData], keys: Sequence[str]) -> dict[Settings, list[RunData]]:
    """Group runs by their values of `keys`; a key that only the other side sweeps is a constant here."""
    groups: dict[Settings, list[RunData]] = {}
    for run in runs:
        own = tuple((key, run.values[key] if key in run.values else configured(run, key)) for key in keys)
        groups.setdefault(own, []).append(run)
    return groups


def _find_differences(pair: Pair, problems: list[str]) -> None:
    """Set what differs between the first runs of the two sides; runs of one side differ only in the seed."""
    first, second = (
        runs[0].config or read_if_possible(runs[0].path / "config.yaml", []) for runs in (pair.a, pair.b)
    )
    try:
        one, other = (config.get("eval") or {} for config in (first, second))
        of_eval = {key: (one.get(key), other.get(key)) for key in sorted({*one, *other})}
        pair.differing = differing_keys(first, second)
        pair.differing |= {f"eval.{key}": each for key, each in of_eval.items() if each[0] != each[1]}
    except Exception as error:  # whatever an old configuration contains, the rest is still shown
        where = f" of {pair.label}" if pair.label else ""
        problems.append(f"The configurations{where} cannot be compared: {type(error).__name__}: {error}.")
    if len(pair.a) > 1 or len(pair.b) > 1:
        pair.differing.pop(SEED, None)


def common_differences(
    comparison: Comparison,
) -> tuple[dict[str, tuple[str, str]], dict[str, dict[str, tuple[str, str]]]]:
    """Return what differs in the same way in all pairs, and by label what else differs in a pair."""
    texts = {
        pair.label: {key: (config_text(a), config_text(b)) for key, (a, b) in pair.differing.items()}
        for pair in comparison.both
    }
    counts = Counter((key, values) for differing in texts.values() for key, values in differing.items())
    common = {key: values for (key, values), count in counts.items() if count == len(texts)}
    rest = {
        label: {key: values for key, values in differing.items() if key not in common}
        for label, differing in texts.items()
    }
    return common, {label: differing for label, differing in rest.items() if differing}


# ---- in words ----------------------------------------------------------------------------------------------


def with_spread(runs: Sequence[RunData]) -> str:
    """Return k-NN over seeds, e.g. 72.4 ± 1.3 (n=3)."""
    return spread_text([run.knn for run in runs], ".1f")


def gain(runs: Sequence[RunData]) -> str:
    """Return k-NN minus that of the untrained network, e.g. +52.4 ± 1.3 (n=3)."""
    known = [(run.knn, run.untrained_knn) for run in runs]
    return spread_text([None if a is None or b is None else a - b for a, b in known], "+.1f")


def spread_text(values: Sequence[float | None], form: str) -> str:
    """Return mean, standard deviation and number of the known values, e.g. 72.4 ± 1.3 (n=3)."""
    mean, deviation, count = spread(values)
    if mean is None:
        return "–"
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:.1f}") + f" (n={count})"


def difference_text(pair: Pair) -> str:
    """Return the difference and its standard error, e.g. +3.1 (se 1.2)."""
    error = "" if pair.standard_error is None else f" (se {pair.standard_error:.1f})"
    return "–" if pair.difference is None else f"{pair.difference:+.1f}{error}"


def answer(comparison: Comparison) -> list[str]:
    """Return sentences about the k-NN difference and its spread."""
    sentences = about_data([pair for pair in comparison.both if pair.of_two_data_sets])
    pairs = [pair for pair in comparison.both if pair.difference is not None]
    if not pairs:
        unknown = ["k-NN cannot be compared: no pair has it on both sides."] if comparison.both else []
        return sentences or unknown
    if len(pairs) == 1:
        pair = pairs[0]
        of = f" with {pair.label}" if pair.label else ""
        sentences += [
            f"k-NN top-1 in percent{of}: A {with_spread(pair.a)}, B {with_spread(pair.b)}: "
            f"B − A = {pair.difference:+.1f} points."
        ]
    else:
        mean, deviation, count = spread([pair.difference for pair in pairs])
        assert mean is not None
        better = sum((pair.difference or 0.0) > 0 for pair in pairs)
        sentences += [
            f"k-NN top-1, B − A: {mean:+.1f} points on average over {count} pairs, with a standard deviation "
            f"between pairs of {deviation:.1f}; B is better in {better}."
        ]
    return [*sentences, about_seeds(pairs)]


def about_data(pairs: Sequence[Pair]) -> list[str]:
    """Return sentences for pairs of two data sets, whose k-NN cannot be compared; none without pairs."""
    if not pairs:
        return []
    of_a, of_b = (
        ", ".join(sorted({str(pair.data_sets[side]) for pair in pairs if pair.data_sets})) for side in (0, 1)
    )
    a, b = [run for pair in pairs for run in pair.a], [run for pair in pairs for run in pair.b]
    return [
        f"k-NN of different data sets is not comparable: A is of {of_a}, B of {of_b}.",
        f"k-NN top-1 in percent: A {with_spread(a)}, B {with_spread(b)}; gain over the untrained network, "
        f"in points: A {gain(a)}, B {gain(b)}.",
    ]


def about_seeds(pairs: Sequence[Pair]) -> str:
    """Return a sentence about the spread of the differences over seeds."""
    known = [pair for pair in pairs if pair.standard_error is not None]
    if not known:
        return (
            "A side with one run (n=1) says nothing about the spread: another seed alone may make such a "
            "difference. Use sweep=seeds to train several seeds."
        )
    clear = [pair for pair in known if abs(pair.difference or 0.0) > 2 * (pair.standard_error or 0.0)]
    if len(pairs) == 1:
        verb = "is more than twice" if clear else "is within twice"
        words = f"The difference {verb} its standard error, {known[0].standard_error:.1f}."
        return f"± is the standard deviation over seeds. {words}"
    single = len(pairs) - len(known)
    number = "1 pair" if len(known) == 1 else f"{len(known)} pairs"
    return (
        f"± is the standard deviation over seeds. Of {number} with several seeds on both sides, "
        f"the difference is more than twice its standard error in {len(clear)}."
        + (f" In {single}, a side with one run (n=1) says nothing about the spread." if single else "")
    )


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the answer, the pairs and the differences in the configuration."""
    _say(console, f"A  {comparison.a}\nB  {comparison.b}\n", *answer(comparison), "")
    console.print(_pairs_table(comparison))
    _say(console, "")
    common, rest = common_differences(comparison)
    title = "Configuration" if len(comparison.both) < 2 else "Configuration, in all pairs"
    if common:
        console.print(_keys_table(title, common))
    elif comparison.both:
        _say(console, f"{title}: nothing that could change the result differs.")
    for label, differing in list(rest.items())[:MOST_ROWS]:
        console.print(_keys_table(f"Configuration, in {label}", differing))
    _say(console, "", *comparison.problems[:MOST_ROWS])


def _say(console: Console, *sentences: str) -> None:
    for sentence in sentences:
        console.print(sentence, soft_wrap=True)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))


def _pairs_table(comparison: Comparison) -> Table:
    table = _table("k-NN top-1 in percent: mean ± standard deviation over seeds (number)")
    table.add_column("runs", overflow="fold", min_width=22)
    for head in ("A", "B", "B − A"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=9)
    for pair in comparison.pairs[:MOST_ROWS]:
        _, a, b, difference, first, second = pair_row(pair)
        verdict = first if first == second else f"{first} → {second}"
        table.add_row(pair.brief or "all", a, b, difference, verdict)
    if len(comparison.pairs) > MOST_ROWS:
        table.add_row(f"and {len(comparison.pairs) - MOST_ROWS} more", style="dim")
    return table


def pair_row(pair: Pair) -> tuple[str, ...]:
    """Return label, k-NN of A and B, difference, and verdicts of A and B."""
    a, b = (outcomes(runs) or "missing" for runs in (pair.a, pair.b))
    knn_a, knn_b = (
        with_spread(runs) + (f",\ngain {gain(runs)}" if pair.of_two_data_sets else "")
        for runs in (pair.a, pair.b)
    )
    return (pair.label or "all", knn_a, knn_b, difference_text(pair), a, b)


def _keys_table(title: str, differing: dict[str, tuple[str, str]]) -> Table:
    table = _table(title)
    for head in ("key", "A", "B"):
        table.add_column(head, overflow="fold")
    for key, values in differing.items():
        table.add_row(key, *values)
    return table
