"""Reading the `config.yaml` of a run, which an older revision may have written under other names."""

from __future__ import annotations

from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from dino_exp.config.messages import closest, did_you_mean
from dino_exp.config.schema import SCHEMAS, Config, fields_of
from dino_exp.config.targets import targets_of
from dino_exp.errors import UserError
from dino_exp.runs import former_names
from dino_exp.runs.run_directory import RunDirectory


class FastLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]  # a base chosen at run time
    """OmegaConf's reading of YAML (1e-5 is a number) at the speed of libyaml."""

    yaml_implicit_resolvers = get_yaml_loader().yaml_implicit_resolvers


def parse(text: bytes) -> dict[str, Any]:
    """Return a stored configuration as plain dictionaries in present names, whatever else is wrong with it.

    Raises:
        ValueError, yaml.YAMLError: it cannot be read at all, or would read something else: runs are stored
            with the values of all interpolations, so ${oc.env:NAME} was written by somebody else.
    """
    content = yaml.load(text, FastLoader)
    if not isinstance(content, dict):
        raise ValueError("no keys and values")
    for key, value in former_names.leaves(content):
        if "${" in str(value):
            raise ValueError(f"{key} = {value}: an interpolation, which no program of ours stores")
    config = former_names.TABLE.present_config(content)
    for key, value in former_names.TABLE.later_keys.items():
        group, _, name = key.rpartition(".")
        node = config.get(group) if group else config
        if isinstance(node, dict) and name in fields_of(_class_of(group, node) or object):
            node.setdefault(name, value)
    return config


def read_plain(directory: RunDirectory) -> dict[str, Any]:
    """Return the configuration of a run as plain dictionaries in present names, with what it has and no more.

    Raises:
        UserError: there is none, it is broken, or a newer version of this program wrote it.
    """
    directory.read_status()  # refuses what a newer version wrote
    try:
        return parse(directory.config_file.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _incomplete(directory, error) from None


def read_config(directory: RunDirectory) -> Config:
    """Return the configuration of a run in present names, typed as a composed one.

    Raises:
        UserError: there is none, it does not fit the schema, or a newer version of this program wrote it.
    """
    config = {"init_sha256": None} | read_plain(directory)
    result = OmegaConf.structured(Config)
    try:
        for name, value in config.items():
            if name not in (names := fields_of(Config)):
                raise ValueError(f"{name}: no such key{did_you_mean(closest(name, names)[:1])}")
            result[name] = typed(name, value) if name in SCHEMAS else value
        missing = [group for group in SCHEMAS if group not in config]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise _incomplete(directory, error) from None
    return cast(Config, result)  # a DictConfig with these fields


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
    return OmegaConf.merge(OmegaConf.structured(schema), node)  # type: ignore[return-value]  # of a dataclass


def _class_of(group: str, node: Any) -> type | None:
    """Return the schema's class for a node; None if no class fits."""
    if not group:
        return Config
    if not isinstance(node, dict):
        return None
    target, classes = node.get("_target_"), SCHEMAS.get(group, {}).values()
    return next((each for each in classes if target in (targets_of(each) or (None,))), None)


def _incomplete(directory: RunDirectory, error: Exception) -> UserError:
    reason = " ".join((str(error).strip() or type(error).__name__).splitlines()[0].split())
    return UserError(f"{directory.config_file}: not the complete configuration of a run ({reason}).")
