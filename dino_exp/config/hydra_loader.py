"""The door to Hydra's internals, with `config_files`: parser, loader, sweeper, and how it starts runs."""

from __future__ import annotations

import argparse
import copy
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from dino_exp.config.config_files import FROM_USER, ConfigLoader
from dino_exp.config.plugins import load_installed
from dino_exp.config.schema_store import register
from dino_exp.config.text_keys import typed_words
from dino_exp.errors import UserError, in_words
from dino_exp.installation import CONF, as_typed

VERSION_BASE = "1.3"
CONFIG_NAME = "config"
EVALUATE = "evaluate"
"""The other table of contents, that of `evaluate.py`."""
GIVEN = "given"
"""The options of images and networks that only code has, which chooses them (`dino_exp.train`)."""
FORK = "fork-"
"""How the options begin that a fork has of its parent's configuration, which `fork_from` chooses."""


class CompositionError(Exception):
    """An invalid YAML file; `key` is the offending key where Hydra names one."""

    def __init__(self, message: str, source: str | None, key: str | None, unknown: bool) -> None:
        super().__init__(message)
        self.source, self.key, self.unknown = source, key, unknown


class Composition(NamedTuple):
    """A composed configuration."""

    whole: DictConfig
    """With Hydra's own node."""
    run: DictConfig
    """What a run sees."""

    @property
    def choices(self) -> dict[str, str]:
        """The option in force, by group."""
        return dict(self.whole.hydra.runtime.choices)


class Loader:
    """Composes configurations from `conf/` and, before it, a folder of the user's own.

    Args:
        config_dir: what `--config-dir` names, or None.
        config_name: the table of contents, a file of `conf/`.
    """

    def __init__(self, config_dir: str | None = None, config_name: str = CONFIG_NAME) -> None:
        if not CONF.is_dir():
            raise UserError(f"{CONF}: no such folder; the installation is incomplete, install it again.")
        self.config_name = config_name
        version.setbase(VERSION_BASE)
        setup_globals()
        register()
        load_installed()
        search_path = create_config_search_path(str(CONF))
        if config_dir is not None:
            if not Path(config_dir).is_dir():
                raise UserError(f"--config-dir {config_dir}: no such folder.")
            path = f"file://{Path(config_dir).resolve()}"
            search_path.prepend(FROM_USER, path, SearchPathQuery(provider="schema", path=None))
        self._hydra = ConfigLoader(search_path)
        self._parser = OverridesParser.create(config_loader=self._hydra)
        self._parsed: dict[str, Override] = {}  # a sweep repeats the same texts many times
        self._composed: dict[tuple[str, ...], Composition] = {}
        defaults = yaml.safe_load((CONF / f"{config_name}.yaml").read_text("utf-8"))["defaults"]
        contents = {group for entry in defaults if isinstance(entry, dict) for group in entry}
        self.groups: list[str] = sorted(contents & set(self._hydra.get_group_options("", ObjectType.GROUP)))

    def is_group(self, key: str) -> bool:
        """Return whether `key` chooses a file (`backbone`, `hydra/launcher`) instead of setting a value."""
        if "/" in key:
            return not key.startswith("schema/") and bool(self.options(key))
        return key in self.groups

    def options(self, group: str) -> list[str]:
        """Return the names of a group's files, without those that Python code or a fork alone can choose."""
        names = {*self._hydra.get_group_options(group, ObjectType.CONFIG)} - {GIVEN}
        return sorted(name for name in names if not name.startswith(FORK))

    def parse(self, text: str) -> Override:
        """Parse one override; raises `HydraException` if it is malformed."""
        if text not in self._parsed:
            self._parsed[text] = self._parser.parse_overrides([text])[0]
        return self._parsed[text]

    def compose(self, choices: tuple[str, ...]) -> Composition:
        """Return the composition of the group choices. It is cached: copy it before changing it.

        Raises:
            CompositionError: a file names a key, value or option that does not exist.
        """
        if choices not in self._composed:
            try:
                cfg = self._hydra.load_configuration(self.config_name, list(choices), RunMode.RUN)
            except UserError as error:
                raise CompositionError(str(error), None, None, unknown=False) from error
            except (HydraException, OmegaConfBaseException) as error:
                raise _composition_error(error) from error
            with open_dict(cfg):  # Hydra does not record a list of options
                lists = (choice.split("=", 1) for choice in choices if "=[" in choice)
                cfg.hydra.runtime.choices.update(dict(lists))
            self._composed[choices] = Composition(cfg, without_hydra(cfg))
        return self._composed[choices]

    def run(self, task: TaskFunction, words: Sequence[str], mode: RunMode) -> None:
        """Have Hydra call `task` for a run or, through the chosen sweeper and launcher, for each of a sweep.

        Raises:
            UserError: Hydra or a plugin of another project cannot do it, or a directory cannot be created.
        """
        hydra = Hydra(task_name="train", config_loader=self._hydra)
        start = hydra.multirun if mode == RunMode.MULTIRUN else hydra.run
        try:
            start(self.config_name, task, [*words, f"hydra.mode={mode.name}"])
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{_composition_error(error)}.") from error
        except OSError as error:
            raise UserError(f"{in_words(error)}; choose another output_root.") from error

    def show(self, arguments: argparse.Namespace) -> None:
        """Print what --cfg, --info, --hydra-help or -sc asks for.

        Raises:
            UserError: it cannot be composed.
        """
        hydra = Hydra(task_name="train", config_loader=self._hydra)
        name, words = self.config_name, arguments.overrides
        try:
            if arguments.cfg:
                hydra.show_cfg(name, words, arguments.cfg, arguments.package, arguments.resolve)
            elif arguments.info:
                hydra.show_info(arguments.info, name, words)
            elif arguments.hydra_help:
                hydra.hydra_help(name, get_args_parser(), arguments)
            else:
                hydra.shell_completion(name, words)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise UserError(f"{_composition_error(error)}.") from error

    @staticmethod
    def expand(overrides: Sequence[Override]) -> list[list[str]]:
        """Return each run's overrides, in the order of Hydra's basic sweeper."""
        return BasicSweeper.split_arguments(list(overrides), None)[0]

    @staticmethod
    def set_in_hydra(cfg: DictConfig, override: Override) -> str | None:
        """Apply an override of Hydra's own configuration, which may add and delete; return what is wrong."""
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], cfg)
            OmegaConf.select(cfg, override.key_or_group)
        except (InterpolationKeyError, UnsupportedInterpolationType) as error:
            return str(error).splitlines()[0]
        except (MissingMandatoryValue, InterpolationResolutionError):
            return None  # Hydra fills it in later, or a resolver works only during a run: ${hydra:...}
        except (HydraException, OmegaConfBaseException) as error:
            return str(error.__cause__ or error).splitlines()[0]
        except (AttributeError, TypeError, ValueError):  # OmegaConf's, for values of the wrong shape
            return "Hydra cannot take this value"
        return None


def without_hydra(whole: DictConfig) -> DictConfig:
    """Return a copy without Hydra's node."""
    run = copy.deepcopy(whole)
    with open_dict(run):
        del run["hydra"]
    return run


@cache
def loader(config_dir: str | None = None, config_name: str = CONFIG_NAME) -> Loader:
    """Return the loader of a folder and table of contents; opening one takes longer than composing."""
    return Loader(config_dir, config_name)


def _composition_error(error: BaseException) -> CompositionError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    source = first.split("'")[1] if first.startswith("In '") else None
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return CompositionError(first, source, None, unknown=False)
    reason = str(cause.msg or cause).splitlines()[0]
    unknown = type(cause).__name__ in ("ConfigKeyError", "ConfigAttributeError")
    return CompositionError(reason, source, cause.full_key, unknown)


def parse_arguments(
    argv: Sequence[str], program: str = "train.py", example: str = "trainer.epochs=5"
) -> argparse.Namespace:
    """Parse a command line as Hydra does; program and example are for the error.

    Raises:
        UserError: an unknown option, or one that would bypass the checked configuration; or the working
            folder, which Hydra asks for, has been removed.
    """
    try:
        Path.cwd()
    except OSError:
        raise UserError("The working folder has been removed or cannot be read; cd to another.") from None
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(
            f"{message}. Values are written key=value, e.g. {example}; see {as_typed(program)} --help."
        )

    parser.error = refuse  # type: ignore[method-assign]  # argparse would print its usage and exit
    arguments = parser.parse_intermixed_args(list(argv))
    if sum([arguments.run, arguments.multirun, arguments.cfg is not None, arguments.info is not None]) > 1:
        raise UserError("--run, --multirun, --cfg and --info: give one of them.")
    if arguments.resolve and arguments.cfg is None:
        raise UserError("--resolve: goes with --cfg, e.g. --cfg job --resolve.")
    for name in ("config_path", "config_name", "experimental_rerun"):
        if getattr(arguments, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')}: not supported; --config-dir DIR adds options of your own."
            )
    return arguments


def override_text(key: str, value: str) -> str:
    """Return key='value', quoted for Hydra's grammar."""
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def to_paste(key: str, text: str) -> str:
    """Return key="text", quoted for Hydra's grammar and for a shell."""
    quoted = QuotedString(text.replace("${", r"\${"), Quote.double).with_quotes()
    return shlex.quote(f"{key}={quoted}")


def sweeper_parameters(cfg: DictConfig) -> list[str]:
    """Return a configuration file's sweep (`hydra.sweeper.params`) as overrides in present names."""
    parameters = OmegaConf.select(cfg, "hydra.sweeper.params")
    words = [f"{key}={value}" for key, value in parameters.items()] if isinstance(parameters, Mapping) else []
    return typed_words(words)[0]


def is_basic(node: Any) -> bool:
    """Return whether a launcher or sweeper is Hydra's basic one; that launcher trains in this process."""
    return str(node.get("_target_", "")).startswith("hydra._internal.core_plugins.basic_")


def is_grid(node: Any) -> bool:
    """Return whether a sweeper goes through all combinations."""
    return is_basic(node) or str(node.get("_target_", "")).endswith(".GridSweeper")
