"""Reading the `config.yaml` of a run, which an older revision may have written under other names."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from dino_exp.atomic import write_text_atomically
from dino_exp.config.identity import GROUPS
from dino_exp.config.messages import closest, did_you_mean, show
from dino_exp.config.plugins import refuse_unnamed
from dino_exp.config.schema import SCHEMAS, Config, fields_of
from dino_exp.config.targets import targets_of
from dino_exp.config.text_keys import takes_one_text
from dino_exp.errors import UserError
from dino_exp.runs import former_names
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.runs.run_files import DEEPEST, if_readable, read_bytes, read_file, set_aside

log = logging.getLogger(__name__)

MOST_BYTES = 2**20
MOST_COLONS = 100
"""Colons of one value; YAML takes 1:30:00 for a number, and thousands of them take minutes."""


class DamagedConfigError(UserError):
    """A `config.yaml` that is not the complete configuration of a run."""


class FastLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]  # a base chosen at run time
    """OmegaConf's reading of YAML (1e-5 is a number) at the speed of libyaml."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


def parse(text: bytes, resolved: bool = True) -> dict[str, Any]:
    """Return a stored configuration as plain dictionaries in present names, whatever else is wrong with it.

    Args:
        text: YAML.
        resolved: refuse interpolations, which stay text; only checkpoints of earlier versions have some.

    Raises:
        ValueError: it cannot be read at all, or would read something else: `config.yaml` has the values of
            all interpolations, so ${oc.env:NAME} in it was written by somebody else.
    """
    try:
        # libyaml refuses the halves of surrogate pairs, which stand for the bytes of paths that are not UTF-8
        loader = get_yaml_loader() if re.search(rb"\\u[dD][89a-fA-F]", text) else FastLoader
        refuse_growth(text, loader)
        content = yaml.load(text, loader)
    except (yaml.YAMLError, AttributeError, LookupError) as error:  # the latter two for tags that do not fit
        raise ValueError(str(error)) from None
    if not isinstance(content, dict):
        raise ValueError("no keys and values")
    for key, value in former_names.leaves(content):
        if resolved and "${" in str(value):
            raise ValueError(f"{key} = {value}: an interpolation, which no program of ours stores")
    try:
        config = former_names.TABLE.present_config(content)
    except (AttributeError, TypeError):  # a key that is also the group of other keys
        raise ValueError("keys that do not go together") from None
    for key, value in former_names.TABLE.later_keys.items():
        group, _, name = key.rpartition(".")
        node = config.get(group) if group else config
        if isinstance(node, dict) and name in fields_of(_class_of(group, node) or object):
            node.setdefault(name, value)
    return config


def refuse_growth(text: bytes, loader: Any) -> None:
    """Raise ValueError for YAML of which reading takes no end: aliases, thousands of levels or of digits."""
    level = 0
    for event in yaml.parse(text, loader):  # without recursion, where loading would end in a crash
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > DEEPEST:
            raise ValueError("nested too deeply")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("YAML aliases")
        if isinstance(event, yaml.ScalarEvent) and event.value[:1000].count(":") > MOST_COLONS:
            raise ValueError("no number has that many parts")


def read_if_possible(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return a run's configuration as plain dictionaries in present names; empty where it is not readable."""
    return if_readable(lambda: _read(path, problems), {}, problems)


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    return read_file(path, problems, lambda path: parse(read_bytes(path, MOST_BYTES)), {})


def read_plain(directory: RunDirectory) -> dict[str, Any]:
    """Return the configuration of a run as plain dictionaries in present names, with what it has and no more.

    Raises:
        DamagedConfigError: there is none, or it is broken.
        UserError: a newer version of this program wrote the run, or this user may not read it.
    """
    directory.read_status()  # refuses what a newer version wrote
    problems: list[str] = []
    config = _read(directory.config_file, problems)
    lost = [group for group in GROUPS if not isinstance(config.get(group), dict)]
    if lost and not problems:
        problems.append(f"no {', '.join(lost)}" if config else "it is missing or empty")
    if problems:
        raise _incomplete(directory, problems[0].rstrip("."))
    return config


def read_config(directory: RunDirectory) -> Config:
    """Return the configuration of a run in present names, typed as a composed one.

    Raises:
        DamagedConfigError: there is none, or it does not fit the schema.
        UnnamedError: it has components of modules that the user has not named.
        UserError: a newer version of this program wrote the run, or this user may not read it.
    """
    return from_plain(directory, read_plain(directory))


def from_plain(directory: RunDirectory, config: dict[str, Any]) -> Config:
    """Return the plain configuration of a run typed as a composed one.

    Raises:
        DamagedConfigError: it does not fit the schema.
        UnnamedError: it has components of modules that the user has not named.
    """
    refuse_unnamed(str(directory.path), config)
    config = {"init_sha256": None} | config
    result = OmegaConf.structured(Config)
    try:
        for name, value in config.items():
            if name not in (names := fields_of(Config)):
                raise ValueError(f"{name}: no such key{did_you_mean(closest(name, names)[:1])}")
            if name == "expected":
                value = OmegaConf.merge(result[name], value)
            result[name] = typed(name, value) if name in SCHEMAS else value
        missing = [group for group in SCHEMAS if group not in config]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise _incomplete(directory, error) from None
    return cast(Config, result)  # a DictConfig with these fields


def write_config(directory: RunDirectory, cfg: Config | DictConfig) -> None:
    """Write the resolved configuration of a run; a damaged one that is there is kept beside it."""
    if os.path.lexists(directory.config_file):
        try:
            read_plain(directory)
        except DamagedConfigError as error:
            kept = set_aside(directory.config_file)
            log.warning("%s It is kept as %s and written anew.", error, kept.name)
    write_text_atomically(directory.config_file, OmegaConf.to_yaml(cfg, resolve=True))


def typed(group: str, node: Any) -> DictConfig:
    """Return a group of a stored configuration as the schema's class for its `_target_`.

    Raises:
        ValueError: no class has this `_target_`, or the class lacks one of the keys.
        OmegaConfBaseException: a value is of another type.
    """
    schema = _class_of(group, node)
    if schema is None:
        target = node.get("_target_") if isinstance(node, dict) else None
        raise ValueError(f"{group}._target_ = {target}: no component of this project")
    names = fields_of(schema)
    for name in node:
        if name not in names:
            near = did_you_mean([f"{group}.{each}" for each in closest(str(name), names)[:1]])
            raise ValueError(f"{group}.{name}: no such key{near}")
    # true and false of a key that takes words since, as they are typed
    words = {
        name: show(value)
        for name, value in node.items()
        if isinstance(value, bool) and takes_one_text(f"{group}.{name}")
    }
    return OmegaConf.merge(OmegaConf.structured(schema), node | words)  # type: ignore[return-value]  # of a dataclass


def _class_of(group: str, node: Any) -> type | None:
    """Return the schema's class for a node; None if no class fits."""
    if not group:
        return Config
    if not isinstance(node, dict):
        return None
    target, classes = node.get("_target_"), SCHEMAS.get(group, {}).values()
    return next((each for each in classes if target in (targets_of(each) or (None,))), None)


def _incomplete(directory: RunDirectory, error: Exception | str) -> DamagedConfigError:
    reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
    return DamagedConfigError(
        f"{directory.config_file}: not the complete configuration of a run ({reason}). The command that "
        "started the run or sweep, typed again, writes it anew."
    )
