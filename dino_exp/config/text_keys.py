"""The keys that take text: what looks like a number there, such as 12e4 or 0123, stays as it is written."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import yaml

from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.config.launcher_settings import SETTINGS
from dino_exp.config.schema import SCHEMAS, Config
from dino_exp.config.searches import SEARCHES
from dino_exp.runs import former_names

TEXT = (str, str | None, list[str])
PARTS = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,\[\](){}'"]+""", re.DOTALL)
"""Quoted and unquoted parts of an override's value."""
NOT_TEXT = re.compile(
    r"(?!(?:0|[1-9]\d*)$)"  # Hydra writes these as they were typed
    r"(?:[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:e[+-]?\d[\d_]*)?|[+-]?(?:inf|nan)|true|false)$",
    re.IGNORECASE,
)
"""What Hydra's grammar makes a number or truth value of, and would write differently."""
YAML_TEXT, YAML_NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"


def typed_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return overrides in present names with their text quoted, and a line for each former name."""
    present, renamed = former_names.TABLE.present_words(words)
    return [_with_quotes(word) for word in present], renamed


def takes_one_text(key: str) -> bool:
    """Return whether a key takes text, not a list of it."""
    return TEXT_KEYS.get(key) in (str, str | None)


def keep_text(node: yaml.Node | None, key: str) -> None:
    """Make text of the scalars of a YAML file that belong to text keys.

    Args:
        node: a node of the file, which is changed.
        key: where the node will be in the configuration, dotted.
    """
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            keep_text(value, f"{key}.{name.value}".lstrip("."))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            keep_text(item, key)
    elif isinstance(node, yaml.ScalarNode) and node.tag != YAML_NULL and key in TEXT_KEYS:
        node.tag = YAML_TEXT


def _with_quotes(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or key.lstrip("+") not in TEXT_KEYS:
        return word

    def quoted(part: re.Match[str]) -> str:
        text = part.group().strip()
        return part.group().replace(text, f"'{text}'") if NOT_TEXT.match(text) else part.group()

    return f"{key}={PARTS.sub(quoted, value)}"


def _keys(schema: type, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a schema class and of those in it, with their types."""
    for name, kind in get_type_hints(schema).items():
        key = f"{prefix}{name}"
        if is_dataclass(kind) and isinstance(kind, type):
            for each in SCHEMAS.get(key, {"": kind}).values():
                yield from _keys(each, f"{key}.")
        else:
            yield key, kind


def _text_keys() -> dict[str, Any]:
    roots: list[tuple[Any, str]] = [(Config, ""), (EvaluateConfig, "")]
    roots += [(settings, "hydra.sweeper.") for settings in SEARCHES.values()]
    roots += [(settings, "hydra.launcher.") for settings in SETTINGS.values()]
    found = [each for schema, prefix in roots for each in _keys(schema, prefix)]
    others = {key for key, kind in found if kind not in TEXT}
    return {key: kind for key, kind in found if key not in others} | {"experiment": None}


TEXT_KEYS = _text_keys()
"""The type of each key that takes text, by dotted key; an option's name has none."""


def refresh() -> None:
    """Take note of options that were added to the schema."""
    TEXT_KEYS.update(_text_keys())
