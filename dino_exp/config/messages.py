"""The messages of configuration errors: key, value, and fix."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from typing import Any

from omegaconf import OmegaConf

from dino_exp.config.schema import SCHEMAS, fields_of
from dino_exp.installation import as_typed
from dino_exp.runs import former_names

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list[float]": "a list of numbers",
    "list[int]": "a list of whole numbers",
    "list[Any]": "a pair of bounds, like [0,4095] or [p0.5,p99.5], or a pair per channel",
    "list[bool]": "a list of true and false",
    "list[str]": "a list of words",
}

RELEASED_NAMES = {
    "arch": "backbone",
    "data_path": "data.root",
    "output_dir": "output_root",
    "batch_size_per_gpu": "trainer.batch_size (over all GPUs)",
    "momentum_teacher": "ema.momentum",
    "global_crops_scale": "crops.global_scale",
    "local_crops_scale": "crops.local_scale",
    "local_crops_number": "crops.local_number",
    "use_bn_in_head": "head.use_bn",
    "weight_decay_end": "optimizer.final_weight_decay",
    "freeze_last_layer": "optimizer.freeze_last_layer_epochs",
    "use_fp16": "trainer.precision=fp16",
    "saveckp_freq": "trainer.checkpoint_every (in steps)",
}
"""Arguments of the released code, and what they are called here."""


def show(value: Any) -> str:
    """Return a value as it is typed on the command line."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=False)
    if isinstance(value, str):
        return value if value.strip() == value and value else repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(item) for item in value) + "]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def any_of(words: Sequence[str]) -> str:
    """Return the words as a list in prose: a, b or c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def did_you_mean(words: Sequence[str]) -> str:
    """Return the question, or nothing if there are no words."""
    return f"; did you mean {any_of(words[:3])}?" if words else ""


def closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Return up to three similar words, the most similar first."""
    return difflib.get_close_matches(word, list(words), n=3, cutoff=cutoff)


def unknown_key(
    key: str, keys: Sequence[str], groups: Sequence[str], choices: Mapping[str, str], program: str
) -> str:
    """Return the error for a key that the composed configuration does not have.

    Args:
        key: what was typed.
        keys: all dotted keys of the configuration.
        groups: names of the groups.
        choices: the chosen option, by group.
        program: whose command line it is.
    """
    present = former_names.TABLE.present_key(key)
    if present != key:
        return f"{key}: now called {present}."
    group, _, last = key.rpartition(".")
    options = SCHEMAS.get(group, {}) if group in choices else {}
    elsewhere = [name for name, schema in options.items() if last in fields_of(schema)]
    if elsewhere:
        own = [other.rpartition(".")[2] for other in keys if other.startswith(f"{group}.")]
        own = [name for name in own if not name.startswith("_")]
        return (
            f"{key}: no such key with {group}={choices.get(group)}, which has {', '.join(own)}; "
            f"it belongs to the {any_of(elsewhere)} options of {group}."
        )
    top, _, name = group.partition(".")
    if top == "eval" and group in keys and not any(other.startswith(f"{group}.") for other in keys):
        return f"{key}: {name} is not evaluated; add it, e.g. eval=[knn,{name}]."
    near = did_you_mean(_similar_keys(key, last, keys, groups))
    return f"{key}: no such key{near or f'; see {as_typed(program)} --help.'}"


def _similar_keys(key: str, last: str, keys: Sequence[str], groups: Sequence[str]) -> list[str]:
    if last in RELEASED_NAMES:
        return [RELEASED_NAMES[last]]
    same_end = [other for other in keys if other == last or other.endswith(f".{last}")]
    if same_end:
        return same_end
    if "." not in key:
        by_end = {other.rpartition(".")[2]: other for other in reversed(keys)}
        close = closest(key, [*groups, *by_end], cutoff=0.7)
        return [by_end.get(word, word) for word in close[:1]]
    by_end = {other.rpartition(".")[2]: other for other in keys if other.startswith(key.split(".")[0] + ".")}
    near = [by_end[word] for word in closest(last, by_end)][:1]
    return near or closest(key, keys, cutoff=0.7)[:1]


def unknown_option(group: str, value: str, options: Sequence[str]) -> str:
    """Return the error for an unknown option of a group."""
    present = former_names.TABLE.present_value(group, value)
    if present != value:
        return f"{group}={value}: now called {group}={present}."
    near = did_you_mean(closest(value, options)[:1])
    return f"{group}={value}: no such option{near or '.'} Options: {', '.join(options)}."


def wrong_value(key: str, value: Any, field: Field[Any] | None) -> str:
    """Return the error for a value of the wrong type; without a field, it is an item of a list."""
    kind, *optional = str(field.type).split(" | ") if field else ["float"]
    expected = EXPECTED.get(kind, "set by an option, e.g. eval=[knn,linear],")
    if field and kind in ("list[float]", "list[int]") and callable(field.default_factory):
        length = field.metadata["bounds"].length if "bounds" in field.metadata else None
        count = f"{length} numbers" if length else EXPECTED[kind].removeprefix("a list of ")
        expected = f"a list of {count}, like {show(field.default_factory())}"
    if optional:
        expected += " or null"
    hint = ""
    if kind == "int" and isinstance(value, float) and value.is_integer():
        hint = f" (write {int(value)})"
    return f"{key} = {show(value)}: must be {expected}{hint}."
