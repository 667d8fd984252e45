"""Builds components from configuration nodes; only what the schema names is ever imported or called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields
from typing import Any, Protocol, cast

from omegaconf import MISSING as NOT_SET
from omegaconf import DictConfig, OmegaConf

from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.schema import SCHEMAS
from dino_exp.errors import UserError


class Component(Protocol):
    """A node as the schema's dataclasses describe it; at run time it is a DictConfig."""

    _target_: str


def targets_of(schema: type) -> tuple[str, ...]:
    """The `_target_`s that a schema class accepts: its field's choices, or its default alone."""
    target: Field[Any] | None = next((field for field in fields(schema) if field.name == "_target_"), None)
    if target is None or target.default in (NO_DEFAULT, NOT_SET):
        return ()
    choices = target.metadata.get("choices")
    return choices.words if choices else (str(target.default),)


CLASSES: dict[str, type] = {
    target: schema
    for classes in (*SCHEMAS.values(), EVALUATIONS)
    for schema in classes.values()
    for target in targets_of(schema)
}
"""The schema's class of each `_target_`."""
KNOWN = frozenset(CLASSES)


def check_target(target: Any) -> None:
    """Raise `UserError` for a `_target_` that is not one of the schema's own.

    A list of dangerous names would always miss one, and a configuration may come from another person.
    """
    if target not in KNOWN:
        raise UserError(f"_target_ = {target}: not a component of this project, and so never called")


def build(node: Component | DictConfig | Mapping[str, Any], **extra: Any) -> Any:
    """Call a node's `_target_` with its fields and `extra`, which wins.

    Args:
        node: a group of the configuration; lists in it arrive as plain lists.
        extra: arguments that are not configuration, such as `in_dim` or parameters. They are passed as they
            are; OmegaConf, which would copy them, never sees them.

    Raises:
        UserError: the `_target_` is not one of the schema's.
    """
    from hydra.utils import instantiate

    check_target(cast(Mapping[str, Any], node).get("_target_"))
    # Not recursive: a `_target_` inside a field would slip past the check.
    component = instantiate(node, _partial_=True, _recursive_=False, _convert_="all")
    return component(**extra)


def build_from(node: Component | DictConfig, **extra: Any) -> Any:
    """Call a node's `_target_` with the node itself, as an object of its schema's class, and `extra`.

    Raises:
        UserError: the `_target_` is not one of the schema's.
    """
    from hydra.utils import get_object

    check_target(node._target_)
    typed = OmegaConf.merge(OmegaConf.structured(CLASSES[node._target_]), node)  # of rank 0 it comes untyped
    return get_object(node._target_)(OmegaConf.to_object(typed), **extra)
