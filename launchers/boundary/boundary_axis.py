"""An axis of the space in which a boundary is searched: a key, its interval, and its scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dino_exp.config.search_space import Numbers

MOST_TICKS = 6
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Axis:
    """A key whose values have positions from 0 to 1.

    On a log scale the logarithm of a value is even, on a momentum scale that of 1 − m: from 0.9 to 0.99 it is
    as far as from 0.99 to 0.999.
    """

    key: str
    low: float
    high: float
    scale: str
    """linear, log or momentum."""

    @classmethod
    def of(cls, space: Numbers) -> Axis:
        """Return the axis of an interval; momenta have their own scale unless a tag says otherwise."""
        momentum = space.momentum or (space.key.endswith("momentum") and space.high < 1 and not space.log)
        scale = "momentum" if momentum else "log" if space.log else "linear"
        return cls(space.key, float(space.low), float(space.high), scale)

    def position(self, value: float) -> float:
        """Return the position of a value; outside of the interval it is below 0 or above 1."""
        low, high = self._even(self.low), self._even(self.high)
        return (self._even(value) - low) / (high - low)

    def value(self, position: float) -> float:
        """Return the value at a position, never outside of the interval."""
        low, high = self._even(self.low), self._even(self.high)
        at = low + min(max(position, 0.0), 1.0) * (high - low)
        value = {"log": math.exp, "momentum": lambda even: 1 - math.exp(-even)}.get(self.scale, float)(at)
        return min(max(value, self.low), self.high)

    def text(self, value: float) -> str:
        """Return a value as people read it, to the digits that its scale can tell apart."""
        if self.scale == "momentum":
            digits = max(2, 1 - math.floor(math.log10(max(1 - value, 1e-12))))
            return f"{value:.{digits}f}".rstrip("0").rstrip(".") or "0"
        return f"{value:.2g}" if self.scale == "log" else f"{value:.3g}"

    def ticks(self) -> list[float]:
        """Return round values in the interval, in ascending order, at most `MOST_TICKS`."""
        if self.scale == "linear":
            return _even_ticks(self.low, self.high)
        if self.scale == "log":
            return _decade_ticks(self.low, self.high)
        ticks = _decade_ticks(1 - self.high, 1 - self.low)
        return sorted(float(f"{1 - tick:.12g}") for tick in ticks)

    def _even(self, value: float) -> float:
        if self.scale == "log":
            return math.log(max(value, 1e-300))
        return -math.log(max(1 - value, 1e-12)) if self.scale == "momentum" else value

    def as_fields(self) -> dict[str, Any]:
        """Return what a file keeps."""
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Axis:
        """Return the axis that a file has kept.

        Raises:
            KeyError, TypeError, ValueError: it is damaged.
        """
        axis = cls(str(fields["key"]), float(fields["low"]), float(fields["high"]), str(fields["scale"]))
        if not (math.isfinite(axis.low) and math.isfinite(axis.high)):
            raise ValueError(f"{axis.key}: ends that are no numbers")
        if axis.scale not in ("linear", "log", "momentum") or not axis._even(axis.low) < axis._even(
            axis.high
        ):
            raise ValueError(f"{axis.key}: no interval")
        return axis


def _even_ticks(low: float, high: float) -> list[float]:
    for step in _steps(10 ** math.floor(math.log10((high - low) / MOST_TICKS))):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < MOST_TICKS:
            return [float(f"{step * number:.12g}") for number in range(first, last + 1)]
    raise AssertionError  # steps grow without end


def _decade_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for factors in (STEPS, (1, 3), (1,)):
        ticks = [float(f"{factor}e{decade}") for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) <= MOST_TICKS:
            break
    return ticks


def _steps(unit: float) -> Iterator[float]:
    while True:
        yield from (unit * step for step in STEPS)
        unit *= 10
