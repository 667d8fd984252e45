"""Bounds and choices beside the default of a config field, so that each is written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """What a field accepts; `None` means unbounded. `hint` says what people use."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    length: int | None = None
    """Numbers in a list; `None` where it depends on other keys."""
    hint: str = ""


@dataclass(frozen=True)
class Choices:
    """The words that a field accepts."""

    words: tuple[str, ...]


def number(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    length: int | None = None,
    hint: str = "",
) -> Any:
    """A number, an optional number, or a list of numbers; the bounds hold for each of them."""
    bounds = Bounds(at_least, above, at_most, below, length, hint)
    if isinstance(default, (list, tuple)):
        values = list(default)
        return field(default_factory=lambda: list(values), metadata={"bounds": bounds})
    return field(default=default, metadata={"bounds": bounds})


def choice(default: str, words: Sequence[str]) -> Any:
    """One word of a fixed list."""
    return field(default=default, metadata={"choices": Choices(tuple(words))})
