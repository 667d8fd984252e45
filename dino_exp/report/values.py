"""Values of configuration keys as positions on an axis, and as text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from dino_exp.runs.run_files import number

Value = float | str
"""The value of a swept key; lists and words are text."""

UNKNOWN = "unknown"
"""The value of a run whose configuration is not readable or lacks the key."""


def as_value(value: Any) -> Value:
    """Return a value of a configuration as a position on an axis: a number, or text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return float(value) if number(value) is not None else str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_text(as_value(item)) for item in value) + "]"
    if value is None:
        return "null"
    text = str(value)
    if text.startswith("["):
        return re.sub(r"\s*,\s*", ", ", text)
    try:
        return as_value(float(text))
    except ValueError:
        return text


def value_text(value: Value) -> str:
    """Return a value as text: 0.04 rather than 0.04000000001."""
    return f"{value:.10g}" if isinstance(value, float) else value


def config_text(value: Any) -> str:
    """Return a value of a configuration as text; – for null or a missing key."""
    return "–" if value is None else value_text(as_value(value))


def sorted_values(values: Iterable[Value]) -> list[Value]:
    """Return numbers in order, then words in order."""
    return sorted(values, key=lambda value: (isinstance(value, str), value))
