"""Validation of a composed configuration: each value by itself, then the relations between values."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from dino_exp.config import relations
from dino_exp.config.fields import Bounds, Choices
from dino_exp.config.messages import any_of, closest, did_you_mean, show, wrong_value
from dino_exp.config.schema import SCHEMAS, schema_of
from dino_exp.config.targets import targets_of
from dino_exp.runs import former_names

LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
"""Comparison of a number with each of its `Bounds`."""
MISSING_FIX = {
    "data.root": "the training images, e.g. data.root=/path/to/train",
    "backbone.name": "a model's name, e.g. backbone.name=convnext_tiny",
    "data.content": "the images from Python, dino_exp.train(data=...)",
    "backbone.content": "the network from Python, dino_exp.train(backbone=...)",
}


def validate(cfg: DictConfig) -> list[str]:
    """Return the problems of a configuration, one per line; empty if it can run."""
    problems = [problem for _, problem in field_problems(cfg)]
    return problems or list(relations.problems(cfg))


def keys_of(node: Any, prefix: str = "") -> list[str]:
    """Return all dotted keys of a typed node and of the typed nodes in it, but not the groups themselves."""
    keys = []
    for field in fields(schema_of(node)):
        key = f"{prefix}{field.name}"
        own = None if OmegaConf.is_missing(node, field.name) else node._get_node(field.name)
        inner = keys_of(own, f"{key}.") if is_dataclass(schema_of(own)) else []
        keys += inner if inner and not prefix else [key, *inner]
    return keys


def field_problems(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield key and problem of each value that is missing, out of bounds, or not among its choices."""
    for prefix, node in [("", cfg), *((f"{group}.", cfg[group]) for group in SCHEMAS)]:
        yield from node_problems(prefix, node, cfg)


def node_problems(prefix: str, node: DictConfig, cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield key and problem of each wrong value of a typed node, whose keys begin with `prefix`."""
    schema = schema_of(node)
    for field in fields(schema):
        if prefix or field.name not in SCHEMAS:
            key = f"{prefix}{field.name}"
            problem = _problem(key, node, field, schema, cfg)
            if problem:
                yield key, problem
            elif is_dataclass(schema_of(value := node[field.name])):
                yield from node_problems(f"{key}.", value, cfg)


def _problem(key: str, node: DictConfig, field: Field[Any], schema: type, cfg: DictConfig) -> str | None:
    if OmegaConf.is_missing(node, field.name):
        return f"{key}: not set; give {MISSING_FIX.get(key, 'a value')}."
    try:
        value = node[field.name]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    except InterpolationKeyError:
        return _dangling(key, node, field.name, cfg)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", reason).strip("\"'")
        return f"{key} = {_as_written(node, field.name)}: {reason}."
    present = former_names.TABLE.present_value(key, value) if isinstance(value, str) else value
    if present is not value:
        return f"{key} = {value}: now called {present}."
    if field.name == "_target_":
        return _target_problem(key, value, schema)
    choices: Choices | None = field.metadata.get("choices")
    if choices and not (value is None and "None" in str(field.type)):
        for word in value if isinstance(value, list) else [value]:
            if word not in choices.words:
                near = did_you_mean(closest(str(word), choices.words)[:1])
                return f"{key} = {show(value)}: must be {any_of(choices.words)}{near or '.'}"
    if str(field.type) == "list[float]" and not _is_list_of_numbers(value):
        return wrong_value(key, value, field)
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            return f"{key} = {show(value)}: must be a finite number."
    bounds: Bounds | None = field.metadata.get("bounds")
    return _out_of_bounds(key, value, bounds) if bounds and value is not None else None


def _is_list_of_numbers(value: Any) -> bool:
    """Return whether all items are numbers; OmegaConf checks neither nested lists nor interpolations."""
    return isinstance(value, list) and bool(value) and all(type(item) in (int, float) for item in value)


def _out_of_bounds(key: str, value: Any, bounds: Bounds) -> str | None:
    numbers = value if isinstance(value, list) else [value]
    if bounds.length is not None and len(numbers) != bounds.length:
        return f"{key} = {show(value)}: must be {bounds.length} numbers, not {len(numbers)}."
    limits = [(name, fits, getattr(bounds, name)) for name, fits in LIMITS.items()]
    limits = [limit for limit in limits if limit[2] is not None]
    if all(fits(number, limit) for number in numbers for _, fits, limit in limits):
        return None
    must = " and ".join(f"{name.replace('_', ' ')} {limit:.10g}" for name, _, limit in limits)
    each = "every number must be" if isinstance(value, list) else "must be"
    return f"{key} = {show(value)}: {each} {must}{f' ({bounds.hint})' if bounds.hint else ''}."


def _dangling(key: str, node: DictConfig, name: str, cfg: DictConfig) -> str:
    """Return the problem of an interpolation of a missing key."""
    text = _as_written(node, name)
    for target in re.findall(r"\$\{([\w.]+)\}", text):
        if OmegaConf.select(cfg, target, throw_on_resolution_failure=False) is None:
            near = did_you_mean([f"${{{word}}}" for word in closest(target, keys_of(cfg))[:1]])
            return f"{key} = {text}: no such key, {target}{near or '.'}"
    return f"{key} = {text}: points to a key that does not exist."


def _as_written(node: DictConfig, name: str) -> str:
    """Return a value with its interpolations."""
    raw: Any = OmegaConf.to_container(node, resolve=False)
    return show(raw[name])


def _target_problem(key: str, value: str, schema: type) -> str | None:
    allowed = targets_of(schema)
    if value in allowed:
        return None
    group = key.split(".")[0]
    if not allowed:
        return (
            f"{key} = {value}: begin the option's file with defaults: [/schema/{group}/NAME@_here_, _self_]."
        )
    return f"{key} = {value}: must be {any_of(allowed)}; choose another {group} with {group}=OPTION."
