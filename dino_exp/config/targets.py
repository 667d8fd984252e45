"""Building components from configuration nodes; only what the schema or the user names is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING as NO_DEFAULT
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol, cast

from omegaconf import MISSING as NOT_SET
from omegaconf import DictConfig, OmegaConf

from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.schema import SCHEMAS, fields_of
from dino_exp.errors import UserError

if TYPE_CHECKING:  # importing torch takes seconds, which refusals and --help need not wait for
    from dino_exp.data.source import Splits


class Component(Protocol):
    """A node of the schema; at run time it is a DictConfig."""

    _target_: str


def targets_of(schema: type) -> tuple[str, ...]:
    """Return each `_target_` that a schema class accepts: its field's choices, or its default alone."""
    target = fields_of(schema).get("_target_")
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
"""Our own components; a module that the user names adds others to `CLASSES`."""
REGISTERED: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
"""What builds each component of others from the values of its node and what `build` is given besides."""


def check_target(target: Any) -> None:
    """Raise `UserError` for a `_target_` that is not one of the schema's own.

    A list of dangerous names would always miss one, and a configuration may come from another person.
    """
    if target not in CLASSES:
        raise UserError(f"_target_ = {target}: not a component of this project; it is never called")


def build(node: Component | DictConfig | Mapping[str, Any], **extra: Any) -> Any:
    """Call a node's `_target_` with those of the node's fields that it names, and `extra`, which wins.

    Fields that the target does not name are for others, such as `data.max_corrupt` for the trainer; a
    misspelled one does not get here, because the schema has checked it.

    Args:
        node: a group of the configuration; lists in it arrive as plain lists.
        extra: arguments that are not configuration, such as `in_dim` or parameters. They are passed as they
            are; OmegaConf, which would copy them, never sees them.

    Raises:
        UserError: the `_target_` is not one of the schema's.
    """
    from hydra.utils import get_object

    config = node if isinstance(node, DictConfig) else OmegaConf.create(cast(Any, node))
    check_target(config.get("_target_"))
    fields = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    if registered := REGISTERED.get(fields["_target_"]):
        return registered(fields | extra)
    component = get_object(fields["_target_"])
    named = signature(component).parameters
    return component(**{name: value for name, value in fields.items() if name in named} | extra)


def images_of(data: Component | DictConfig, packed: bool = True) -> Splits:
    """Return the images of a group `data`, with those of its probe set.

    Args:
        packed: pack them into files of pixels if the group says so.

    Raises:
        UserError: they cannot be used.
    """
    splits: Splits = build(data)
    node = OmegaConf.create(cast(Any, data))
    if "probe" not in node:  # generated, or given with its probe set
        return splits
    from dino_exp.data.decoding import Decoding
    from dino_exp.data.stored_sets import complete, with_probe

    if "val_root" not in node:  # others' code, which has found and labeled both parts
        return with_probe(splits, node.probe, Decoding.of_config(node))
    pack = packed and node.packed
    return complete(splits, node.val_root, node.probe, Decoding.of_config(node), pack, node.packed_side)


def build_from(node: Component | DictConfig, **extra: Any) -> Any:
    """Call a node's `_target_` with the node itself, as an object of its schema's class, and `extra`.

    Raises:
        UserError: the `_target_` is not one of the schema's.
    """
    from hydra.utils import get_object

    check_target(node._target_)
    typed = OmegaConf.merge(OmegaConf.structured(CLASSES[node._target_]), node)  # of rank 0 it comes untyped
    return get_object(node._target_)(OmegaConf.to_object(typed), **extra)
