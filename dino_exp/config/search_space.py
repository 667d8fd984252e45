"""The space of a search, in Hydra's override grammar: intervals, ranges, and lists of choices.

`interval(0.02,0.2)` is a number between its ends, `tag(log,interval(1e-5,1e-2))` one whose logarithm is,
`int(interval(1,8))` an integer; `range(...)` and lists are as in a grid.
`tag(momentum,interval(0.9,0.999))` is one whose logarithm of 1 − m is, for a boundary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from dino_exp.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 6
TAGS = {"log", "int", "momentum"}


@dataclass(frozen=True)
class Choices:
    """One of a list of values."""

    key: str
    values: tuple[str, ...]
    """The values as they are typed."""

    def probes(self) -> list[str]:
        """Return the values to check in place of all."""
        return list(self.values)

    def text(self, value: Any) -> str:
        """Return a proposed value as it is typed."""
        return str(value)

    def distribution(self) -> BaseDistribution:
        """Return the space as Optuna's distribution."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


@dataclass(frozen=True)
class Numbers:
    """A number from `low` to `high`, both included."""

    key: str
    low: float
    high: float
    whole: bool = False  # names of fields are part of a study's name: `launchers.search_study.study_names`
    log: bool = False
    step: float | None = None
    momentum: bool = field(default=False, repr=False)  # came later than the names of studies

    def probes(self) -> list[str]:
        """Return both ends."""
        return list(dict.fromkeys([self.text(self.low), self.text(self.high)]))

    def text(self, value: Any) -> str:
        """Return a proposed value as it is typed, rounded to `DIGITS` but never out of the space."""
        if self.whole:
            return str(int(value))
        return str(min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high))

    def distribution(self) -> BaseDistribution:
        """Return the space as Optuna's distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


Space = Choices | Numbers


def latest(overrides: Sequence[Override]) -> list[Override]:
    """Return one override per key, the last; typed ones come after those of files."""
    return list({override.get_key_element(): override for override in overrides}.values())


def divide(overrides: Sequence[Override]) -> tuple[list[str], list[Space]]:
    """Return the overrides that all trials share, as typed, and the spaces of the others.

    Raises:
        UserError: a space is empty or invalid.
    """
    fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    return fixed, [space_of(override) for override in overrides if override.is_sweep_override()]


def space_of(override: Override) -> Space:
    """Return the space of a swept override; raise `UserError` if it is empty or invalid."""
    key, text, value = override.get_key_element(), override.input_line, override.value()
    allowed = TAGS if isinstance(value, IntervalSweep) else set()
    unknown = sorted(getattr(value, "tags", set()) - allowed)
    if unknown:
        raise UserError(f"{text}: tag {unknown[0]} is unknown; intervals take log, int and momentum.")
    if isinstance(value, IntervalSweep):
        return _interval(key, str(text), value)
    if isinstance(value, RangeSweep):
        return _range(key, str(text), override)
    if isinstance(value, ChoiceSweep):  # a study keeps its choices in one order
        override = replace(override, _value=replace(value, shuffle=False))
    values = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not values:
        raise UserError(f"{text}: an empty list; give values to choose from.")
    return Choices(key, values)


def _interval(key: str, text: str, value: IntervalSweep) -> Numbers:
    low, high = value.start, value.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{text}: an interval needs two finite ends.")
    whole, log = "int" in value.tags or (isinstance(low, int) and isinstance(high, int)), "log" in value.tags
    if low >= high:
        point = "a single point; " if low == high else ""
        raise UserError(f"{text}: {point}the first end of an interval must be below the second.")
    if whole:
        low, high = math.ceil(low), math.floor(high)
    if low > high:
        raise UserError(f"{text}: there is no whole number in it.")
    if log and low <= 0:
        raise UserError(f"{text}: tag log needs an interval above 0.")
    momentum = "momentum" in value.tags
    if momentum and (log or high >= 1):
        raise UserError(
            f"{text}: tag momentum, the logarithm of 1 − m, needs an interval below 1, and no tag log."
        )
    return Numbers(key, low, high, whole, log, momentum=momentum)


def _range(key: str, text: str, override: Override) -> Numbers:
    sweep: Any = override.value()
    if not sweep.step:
        raise UserError(f"{text}: the step of a range cannot be 0.")
    values = list(replace(sweep, shuffle=False).range())
    if not values:
        raise UserError(f"{text}: an empty range.")
    whole = all(isinstance(value, int) for value in values)
    ends = sorted([values[0], values[-1]])
    if not whole:
        ends = [float(f"{end:.{DIGITS}g}") for end in ends]
    return Numbers(key, ends[0], ends[1], whole, step=abs(sweep.step))


def probes(fixed: Sequence[str], spaces: Sequence[Space]) -> list[list[str]]:
    """Return trials that cover a space: all first values, then each other value or end of one key."""
    first = {space.key: space.probes()[0] for space in spaces}
    others = [first | {space.key: text} for space in spaces for text in space.probes()[1:]]
    return [[*fixed, *typed(values)] for values in [first, *others]]


def space_problems(spaces: Sequence[Space], settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield why spaces cannot be searched together, one reason per line."""
    if spaces and all(len(space.probes()) == 1 for space in spaces):
        point = " ".join(typed({space.key: space.probes()[0] for space in spaces}))
        yield (
            f"hydra/sweeper = optuna: the space is a single point, {point}; give a key an interval or "
            "several values, or train it without hydra/sweeper=optuna."
        )
    if settings["seeds"] > 1 and any(space.key == "trainer.seed" for space in spaces):
        yield (
            f"hydra.sweeper.seeds = {settings['seeds']}: averages over trainer.seed, which is searched; "
            "remove one of the two."
        )


def typed(values: dict[str, str]) -> list[str]:
    """Return values as overrides."""
    return [f"{key}={text}" for key, text in values.items()]
