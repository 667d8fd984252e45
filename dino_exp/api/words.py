"""Overrides from Python as the words of a command line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dino_exp.config.hydra_loader import override_text
from dino_exp.errors import UserError
from dino_exp.runs.former_names import leaves

Overrides = str | Iterable[str] | Mapping[str, Any]
"""As typed, `["loss.teacher_temp=0.04"]`, or a mapping, `{"loss.teacher_temp": 0.04}`, also a nested one."""


def words_of(overrides: Overrides) -> list[str]:
    """Return overrides as words.

    Raises UserError for what is no value, and for words that only a command line can have.
    """
    if isinstance(overrides, Mapping):
        words = [f"{key}={text(key, value)}" for key, value in leaves(overrides)]
    else:
        words = [overrides] if isinstance(overrides, str) else list(overrides)
    for word in words:
        if not isinstance(word, str):
            raise UserError(f"overrides: {word!r}; write each as text, key=value, or give a mapping.")
        if word.startswith("-") or re.match(r"\+*hydra[./]", word):
            raise UserError(
                f"{word}: belongs to the command line; from Python a run is trained in this process, and "
                "dino_exp.sweep(..., grid=...) trains several."
            )
    return words


def text(key: str, value: Any) -> str:
    """Return a value as it is typed after `key=`. Raises UserError if it cannot be."""
    if hasattr(value, "tolist"):  # of NumPy or torch
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, os.PathLike)):
        value = os.fspath(value)
        plain = re.fullmatch(r"[A-Za-z_/][\w./-]*", value)
        return value if plain else override_text(key, value).removeprefix(f"{key}=")
    if isinstance(value, (list, tuple)):
        return f"[{','.join(text(key, each) for each in value)}]"
    raise UserError(f"{key} = {value!r}: {type(value).__name__}; give text, a number, a list, or None.")


def grid_words(grid: Mapping[str, Any]) -> list[str]:
    """Return the words that sweep over each key's values. Raises UserError if one has none."""
    words = []
    for key, values in grid.items():
        values = values.tolist() if hasattr(values, "tolist") else values
        values = list(values) if isinstance(values, (list, tuple, range)) else [values]
        if not values:
            raise UserError(f"grid: {key} has no values.")
        words += words_of([f"{key}={','.join(text(key, value) for value in values)}"])
    return words
