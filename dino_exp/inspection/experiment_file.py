"""The text of an experiment: values with their reasons, and what was measured, to be compared later."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from dino_exp.config.config_files import content_of, text_of_file
from dino_exp.inspection.choice import Recipe
from dino_exp.streams import visible

SIGN = "Written by `dino-exp inspect`"
"""What every such file has in it."""
FACT = re.compile(r"#   ([a-z -]+): (.*)")
WIDTH = 100


def text_of(recipe: Recipe) -> str:
    """Return the file."""
    lines = ["# @package _global_", *_comment(recipe.title), f"# {SIGN}; it is yours to change."]
    lines += ["#", "# Measured:"]
    lines += [f"#   {name}: {_one_line(text)}" for name, text in recipe.facts.items()]
    lines += ["#", "# What the images do not tell, and you may know:"]
    for each in recipe.unknown:
        lines += _comment(each, "# - ", "#   ")
    lines += ["#", *_comment("Pages of docs/ have the measurements. The paper: arxiv.org/abs/2104.14294.")]
    lines.append("defaults:")
    options = [each for each in recipe.choices if "." not in each.key]
    for choice in options:
        lines += [*_comment(choice.reason, "  # "), f"  - override /{choice.key}: {choice.value}"]
    lines += ["", f"name: {recipe.name}"]
    values = [each for each in recipe.choices if "." in each.key]
    for group, members in groupby(values, key=lambda each: each.key.partition(".")[0]):
        lines.append(f"{group}:")
        for choice in members:
            lines += [
                *_comment(choice.reason, "  # "),
                f"  {choice.key.partition('.')[2]}: {_yaml(choice.value)}",
            ]
    return "\n".join(lines) + "\n"


def _comment(text: str, first: str = "# ", later: str = "") -> list[str]:
    """Return a comment in lines of `WIDTH`; names of files in it cannot end it."""
    return textwrap.wrap(
        _one_line(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=later or first,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _one_line(text: str) -> str:
    return visible(re.sub(r"\s+", " ", text))


def _yaml(value: Any) -> str:
    """Return a value on one line, without interpolations."""
    if isinstance(value, str):
        value = value.replace("${", r"\${")
    encodable = str(value).encode(errors="ignore").decode() == str(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=encodable)
    return text.removesuffix("...\n").strip()


def read(path: Path) -> str:
    """Return the text of a file of the user.

    Raises:
        UserError: it cannot be read.
    """
    return text_of_file(path)


@dataclass(frozen=True)
class Differences:
    """What an experiment has otherwise than a recipe."""

    facts: dict[str, tuple[str, str]] | None
    """What was measured, before and now; None if the file does not have it."""
    values: dict[str, tuple[str, str, str]]
    """By key: in the file, now, and why."""
    own: list[str]
    """Keys and values that are only in the file."""


def differences(text: str, path: Path, recipe: Recipe) -> Differences:
    """Compare the text of a file with a recipe.

    Raises:
        UserError: the file is no YAML.
    """
    theirs, ours = _flat(text, path), _flat(text_of(recipe), path)
    reasons = {each.key: each.reason for each in recipe.choices}
    values = {
        key: (_yaml(theirs[key]) if key in theirs else "–", _yaml(value), reasons.get(key, ""))
        for key, value in ours.items()
        if key not in theirs or theirs[key] != value
    }
    before = {match[1]: match[2] for match in map(FACT.fullmatch, text.splitlines()) if match}
    now = {name: _one_line(fact) for name, fact in recipe.facts.items()}
    changed = {
        name: (before.get(name, "–"), fact)
        for name, fact in now.items()
        if name not in ("measured on", "decoding") and before.get(name) != fact
    }
    own = [f"{key}={_yaml(value)}" for key, value in theirs.items() if key not in ours]
    return Differences(changed if before else None, values, own)


def _flat(text: str, path: Path) -> dict[str, Any]:
    """Return an experiment's values by dotted key, and its options by group."""
    content: Any = OmegaConf.to_container(content_of(path, text, ""), resolve=False)
    options, flat = content.pop("defaults", []), dict[str, Any]()
    for each in options if isinstance(options, list) else []:
        for group, option in (each if isinstance(each, dict) else {each: True}).items():
            flat[str(group).removeprefix("override ").removeprefix("/")] = option
    return flat | dict(_leaves(content, ""))


def _leaves(node: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
