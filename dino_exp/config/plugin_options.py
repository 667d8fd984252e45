"""Options of groups whose components are others': registered, built, and what they give is checked."""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from dino_exp.config import text_keys
from dino_exp.config.plugin_schema import GROUPS, schema_for, target_of
from dino_exp.config.schema import SCHEMAS, fields_of
from dino_exp.config.targets import CLASSES, REGISTERED
from dino_exp.config.their_code import file_of, in_words, place_of
from dino_exp.errors import UserError
from dino_exp.installation import CONF

NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Plugin:
    """A registered component."""

    option: str
    """`data=my_set`"""
    component: Callable[..., Any]
    module: str
    """The module that was named and has registered it."""

    @property
    def place(self) -> str:
        """File and line of its code."""
        return place_of(self.component)

    def code(self) -> str:
        """Return a digest of the files that its code is in."""
        files = {file_of(thing) for thing in (sys.modules.get(self.module), self.component)} - {None}
        digest = hashlib.sha256()
        for file in sorted(filter(None, files)):
            digest.update(Path(file).read_bytes())
        return digest.hexdigest()


PLUGINS: dict[str, Plugin] = {}
"""Registered components, by `_target_`."""
_importing: list[str] = []
"""The module that is being imported because somebody has named it, and those that wait for it."""


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Note that what the block registers comes from a module."""
    _importing.append(module)
    try:
        yield
    finally:
        _importing.pop()


def add(group: str, name: str, component: Callable[..., Any], config: type | None) -> None:
    """Make `name` an option of a group. Raises UserError if it cannot be one."""
    where = f"@register.{group}({name!r}) ({place_of(component)})"
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{where}: not a name; use letters, digits and _, with a letter first.")
    target, option = target_of(group, name), f"{group}={name}"
    other = PLUGINS.get(target)
    if other and _name_of(other.component) != _name_of(component):  # the same one is a module's reload
        raise UserError(f"{where}: {option} is registered already ({other.place}); choose another name.")
    if not other and (name in SCHEMAS[group] or _has_file(group, name)):
        raise UserError(f"{where}: {option} is an option of this project; choose another name.")
    try:
        schema = schema_for(group, name, component, config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    PLUGINS[target] = Plugin(option, component, _importing[-1] if _importing else component.__module__)
    REGISTERED[target] = lambda values: _build(group, PLUGINS[target], values)
    SCHEMAS[group][name] = CLASSES[target] = schema
    text_keys.refresh()
    for place in (group, f"schema/{group}"):
        ConfigStore.instance().store(group=place, name=name, node=schema, provider="plugin")


def _name_of(component: Any) -> tuple[str, str]:
    return component.__module__, component.__qualname__


def _has_file(group: str, name: str) -> bool:
    """Return whether `conf/` has an option of this name that is not made from the registered one."""
    file = CONF / group / f"{name}.yaml"
    return file.exists() and f"/schema/{group}/{name}" not in file.read_text("utf-8")


def _build(group: str, plugin: Plugin, values: Mapping[str, Any]) -> Any:
    """Call a component with the values that it names, and return what this project makes of the result."""
    parameters = inspect.signature(plugin.component).parameters
    general = fields_of(GROUPS[group].base)
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    more = {key for key in values if takes_all and key not in general}
    named = {key: value for key, value in values.items() if key in parameters or key in more}
    with in_words(plugin.option):
        return ADAPTED[group](plugin.component(**named), values)


def _splits(result: Any, values: Mapping[str, Any]) -> Any:
    from dino_exp.data.adapted import as_splits
    from dino_exp.data.source import Splits

    splits = result if isinstance(result, Splits) else as_splits(result, values["channels"])
    for part in filter(None, (splits.train, splits.test)):
        if not hasattr(part, "content"):
            raise UserError(
                f"{type(part).__name__} has no content(), by which a run knows its images; return a Dataset, "
                "an array or a list of files, or add the content() of dino_exp.data.content."
            )
    return splits


def _backbone(result: Any, values: Mapping[str, Any]) -> Any:
    from dino_exp.backbone.others import as_backbone

    return as_backbone(
        result, name=values["name"], in_channels=values["in_channels"], image_size=values["image_size"]
    )


def _optimizer(result: Any, values: Mapping[str, Any]) -> Any:
    from torch.optim import Optimizer

    if not isinstance(result, Optimizer):
        raise UserError(f"returns {type(result).__name__}; it must return a torch.optim.Optimizer.")
    return result


ADAPTED: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "data": _splits,
    "backbone": _backbone,
    "optimizer": _optimizer,
}
"""What becomes of a component's result, by group."""


def used_by(cfg: Any) -> dict[str, Plugin]:
    """Return the registered components of a configuration, by group."""
    targets = {group: cfg[group].get("_target_") for group in GROUPS if cfg.get(group) is not None}
    return {group: PLUGINS[target] for group, target in targets.items() if target in PLUGINS}
