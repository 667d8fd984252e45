"""The typed configuration of a registered component: from a dataclass, or from what its call takes."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass, make_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dino_exp.config.data_schema import PLUGIN, OthersDataConfig
from dino_exp.config.fields import choice
from dino_exp.config.messages import closest, did_you_mean
from dino_exp.config.network_schema import BackboneConfig
from dino_exp.config.schema import OptimizerConfig, fields_of
from dino_exp.errors import UserError

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
SCALARS = (int, float, bool, str)
TYPES = "int, float, bool, str, a list of one of these, any of these or None, or Literal of words"


@dataclass(frozen=True)
class Group:
    """A group whose options can be registered."""

    base: type
    """The class of the settings that the project itself needs of each option."""
    given: tuple[str, ...] = ()
    """What the call is given besides the settings, if it names it."""


GROUPS = {
    "data": Group(OthersDataConfig),
    "backbone": Group(BackboneConfig, ("in_channels", "image_size")),
    "optimizer": Group(OptimizerConfig, ("params",)),
}


def schema_for(group: str, name: str, component: Callable[..., Any], config: type | None) -> type:
    """Return the schema's class for an option: the settings of its group, and its own.

    Args:
        group: one of `GROUPS`.
        name: of the option.
        component: is called with those of the settings that it names.
        config: a dataclass with its own settings; None takes the parameters of the call.

    Raises:
        UserError: a type is missing or is not one that a configuration can have.
    """
    base = GROUPS[group].base
    if config is None and is_dataclass(component) and isinstance(component, type):
        config = component
    found = _of_parameters(group, component) if config is None else _of_fields(config)
    own: dict[str, tuple[str, Any]] = dict(found)
    if config is not None:
        _compare(group, component, own.keys())
    if "name" in fields_of(base):
        own.setdefault("name", ("str", field(default=name)))
    own["_target_"] = ("str", field(default=target_of(group, name)))
    about = inspect.getdoc(component if config is None else config) or f"{group}={name}"
    namespace = {"__doc__": about, "__module__": __name__, "described_by": config or component}
    schema = make_dataclass(
        f"{group}_{name}",
        [(each, text, own_field) for each, (text, own_field) in own.items()],
        bases=(base,),
        kw_only=True,
        namespace=namespace,
    )
    try:
        OmegaConf.structured(schema)
    except OmegaConfBaseException as error:
        raise UserError(f"{str(error).splitlines()[0]}; its default is of another type.") from None
    return schema


def target_of(group: str, name: str) -> str:
    """Return the `_target_` of a registered option, which says its name and not where its code is."""
    return f"{PLUGIN}{group}.{name}"


def _of_fields(config: type) -> Iterator[tuple[str, tuple[str, Field[Any]]]]:
    if not is_dataclass(config):
        raise UserError(f"config = {config!r}: not a dataclass.")
    hints = _hints(config)
    for each in fields(config):
        if not each.init:
            continue
        text = _text(each.name, hints[each.name])
        yield each.name, (text, _copy(each, hints[each.name]))


def _copy(own: Field[Any], kind: Any) -> Field[Any]:
    if own.default_factory is not NO_DEFAULT:
        return field(default_factory=own.default_factory, metadata=own.metadata)
    default = MISSING if own.default is NO_DEFAULT else own.default
    return _field(default, kind, own.metadata)


def _of_parameters(group: str, component: Callable[..., Any]) -> Iterator[tuple[str, tuple[str, Field[Any]]]]:
    hints, general = _hints(component), fields_of(GROUPS[group].base)
    for each in inspect.signature(component).parameters.values():
        if each.name in GROUPS[group].given or each.kind in VARIABLE:
            continue
        if each.kind is each.POSITIONAL_ONLY:
            raise UserError(f"{each.name}: cannot be given by name; write it without the / after it.")
        if each.name in general and each.default is each.empty:
            continue  # the group's own setting, as it is
        if each.name not in hints:
            raise UserError(f"{each.name}: has no type; write e.g. {each.name}: int = 64, of {TYPES}.")
        default = MISSING if each.default is each.empty else each.default
        kind = hints[each.name]
        yield each.name, (_text(each.name, kind), _field(default, kind, {}))


def _field(default: Any, kind: Any, metadata: Any) -> Any:
    if get_origin(kind) is Literal:
        own = choice(default, get_args(kind))
        return own
    if isinstance(default, (list, tuple)):
        return field(default_factory=list(default).copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def _hints(owner: Any) -> dict[str, Any]:
    """Return the types of a class's fields or of a call's parameters."""
    if isinstance(owner, type) and not is_dataclass(owner):
        owner = owner.__init__  # type: ignore[misc]  # of this very class
    try:
        return get_type_hints(owner)
    except (NameError, TypeError) as error:
        raise UserError(f"{error}, which its types name; import it where the module is run.") from None


def _text(name: str, kind: Any) -> str:
    """Return a type as the schema writes it; raise UserError if a configuration cannot have it."""
    if get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)):
        return "str"
    text = _simple(kind)
    if text is None:
        shown = getattr(kind, "__name__", None) if not get_args(kind) else None
        raise UserError(f"{name}: {shown or kind} cannot be a setting; use {TYPES}.")
    return text


def _simple(kind: Any) -> str | None:
    if kind in SCALARS:
        return str(kind.__name__)
    arguments = get_args(kind)
    if get_origin(kind) is list and arguments[0] in SCALARS:
        return f"list[{arguments[0].__name__}]"
    if get_origin(kind) in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        inner = _simple(next(each for each in arguments if each is not type(None)))
        return None if inner is None or inner.endswith("None") else f"{inner} | None"
    return None


def _compare(group: str, component: Callable[..., Any], own: Collection[str]) -> None:
    """Raise UserError unless the call takes each of the fields, and needs nothing else."""
    parameters = inspect.signature(component).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    for name in own:
        if name not in parameters and not takes_all:
            near = did_you_mean(closest(name, parameters)[:1])
            raise UserError(f"{name}: a field of the configuration that the call does not take{near or '.'}")
    known = {*own, *fields_of(GROUPS[group].base), *GROUPS[group].given}
    for name, each in parameters.items():
        if each.default is each.empty and each.kind not in VARIABLE and name not in known:
            raise UserError(f"{name}: the call needs it, and the configuration has no such field.")
