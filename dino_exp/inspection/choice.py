"""One value of a recipe, with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One line of an experiment."""

    key: str
    """A group whose option is chosen (`backbone`), or a dotted key (`data.root`)."""
    value: Any
    reason: str
    """A sentence or more, without a full stop at the end."""


@dataclass(frozen=True)
class Recipe:
    """An experiment for images that were measured."""

    name: str
    title: str
    """For which images, and which machine."""
    facts: dict[str, str]
    """What was measured, in words, by name."""
    unknown: list[str]
    """What the images do not tell and the user may know, in sentences."""
    choices: list[Choice]
    """Options of groups first."""
