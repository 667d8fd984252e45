"""Bounds and choices beside the default of a config field, so that each is written once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """The numbers that a field accepts; `None` means unbounded. `hint` names common values."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    length: int | None = None
    """Length of a list; `None` if it depends on other keys."""
    hint: str = ""


@dataclass(frozen=True)
class Choices:
    """The words that a field accepts."""

    words: tuple[str, ...]


def number(default: Any, **bounds: Any) -> Any:
    """Return the field of a number, an optional number, or a list whose numbers all have these `Bounds`."""
    metadata = {"bounds": Bounds(**bounds)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def choice(default: str | None, words: Sequence[str]) -> Any:
    """Return the field of one word from a fixed list, or of a list of such words."""
    return field(default=default, metadata={"choices": Choices(tuple(words))})
