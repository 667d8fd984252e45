"""Configuration files: errors in them have words, and those of others are data.

Hydra calls what some of its own settings name, and so do the shell lines of a launcher. The user's words on
the command line, `conf/` and installed plugins may set all of them; a file of `--config-dir` may come from
another person, and sets what experiments and sites need. This is checked file by file, where Hydra places its
content, before anything is done with it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from dino_exp.config.launcher_settings import COMMANDS, SETTINGS
from dino_exp.config.messages import show
from dino_exp.config.schema import fields_of
from dino_exp.config.searches import SEARCHES
from dino_exp.config.text_keys import keep_text
from dino_exp.errors import UserError, in_words
from dino_exp.installation import CONF

FROM_USER = "command-line"
"""Hydra's name for the source of `--config-dir`."""
PACKAGES = {"experiment": "_global_", "ablation": "_global_", "sweep": "_global_", "temperature": "loss"}
"""Where the files of these groups belong, with or without `# @package` in their first line."""
ALLOWED = re.compile(
    r"hydra\.(mode|run\.dir|sweep\.(dir|subdir)|job\.config\..+|sweeper\.params\.(?!\W*hydra).+)"
)
"""Hydra's settings that any file may set."""
CALLED = {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}
"""Hydra calls the first, with the others."""
HARMLESS = re.compile(r"\$\{(?:[\w.]+|(?:hydra|now|run_id|oc\.env):[^{}$]*)\}")
"""Interpolations that give text; others could make a mapping that names something to call."""


class ConfigFiles(FileConfigSource):
    """A folder of configuration files."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a file's content.

        Raises:
            UserError: it cannot be read; the message has file, line and fix.
        """
        path = Path(self.path) / self._normalize_file_name(config_path)
        text = text_of_file(path)
        group, _, _ = config_path.rpartition("/")
        try:
            header = self._get_header_dict(text)
        except ValueError:
            raise UserError(f"{path}, line 1: must be # @package and one word, e.g. _global_.") from None
        header["package"] = header["package"] or PACKAGES.get(group)
        package = header["package"] or group.replace("/", ".")
        content = content_of(path, text, "" if package == "_global_" else package)
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", content, header)


class ConfigLoader(ConfigLoaderImpl):
    """Hydra's loader, with files of `--config-dir` as data."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository.sources = [
            ConfigFiles(each.provider, each.full_path()) if each.scheme() == "file" else each
            for each in self.repository.sources
        ]
        self._typed: set[str] = set()

    def _process_config_searchpath(self, *_: Any) -> None:
        """Ignore `hydra.searchpath`, which is refused."""

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *rest: Any, **options: Any
    ) -> Any:
        """Return a composition, as Hydra's loader does.

        Raises:
            UserError: a file cannot be read, or sets what a file of `--config-dir` may not set.
        """
        self._typed = {override.partition("=")[0] for override in overrides}
        return super().load_configuration(config_name, overrides, *rest, **options)

    def _load_single_config(self, default: Any, repo: Any) -> ConfigResult:
        with warnings.catch_warnings():  # a file may refine an option that a module has registered
            warnings.filterwarnings("ignore", r"\s*.*validated against ConfigStore schema", UserWarning)
            result = super()._load_single_config(default, repo)
        if result.provider == FROM_USER:
            content: Any = OmegaConf.to_container(result.config, resolve=False)
            group = default.config_path.rpartition("/")[0]
            chosen = group.replace("/", ".") if group in self._typed else None
            for key, value in _leaves(content.get("hydra", {}), "hydra"):
                if reason := _why_refused(key, value, chosen):
                    file = Path(result.path.partition("://")[2]) / f"{default.config_path}.yaml"
                    raise UserError(f"{file}: {key} = {show(value)}: {reason}.")
        return result


def _why_refused(key: str, value: Any, chosen: str | None) -> str | None:
    """Return why a file of `--config-dir` may not set a key of Hydra's; None if it may.

    Args:
        key: dotted.
        value: not resolved.
        chosen: hydra.launcher or hydra.sweeper, if the user has typed the option that the file is.
    """
    if isinstance(value, str) and "${" in _without_harmless(value):
        return (
            "not in a file of --config-dir, where Hydra takes only ${key}, ${oc.env:NAME} and ${now:FORMAT}"
        )
    parts = key.split(".")
    group = ".".join(parts[:2])
    if CALLED & set(parts):
        if parts[2:] == ["_target_"] and value in _plugins():
            return None
        return "Hydra would call it; files of --config-dir can only choose an installed launcher or sweeper"
    if ALLOWED.fullmatch(key) or (key, value) in _own() or group == chosen:
        return None
    name = "".join(parts[2:3])
    if group == "hydra.launcher" and name in COMMANDS:
        return (
            "it runs commands in jobs; it is taken from a file hydra/launcher/NAME.yaml that you choose "
            "yourself with hydra/launcher=NAME"
        )
    if name in _SETTINGS.get(group, ()):
        return None
    return f"not taken from a file, because Hydra acts on it; if you want it, type {key}=... yourself"


def _without_harmless(text: str) -> str:
    before = ""
    while text != before:  # from the innermost
        before, text = text, HARMLESS.sub("", text)
    return text


def _plugins() -> set[str]:
    """Return the classes of the installed launchers and sweepers."""
    known = Plugins.instance().class_name_to_class
    return {name for name, each in known.items() if issubclass(each, (Launcher, Sweeper))}


@cache
def _own() -> list[tuple[str, Any]]:
    """Return what our own table of contents sets, which a copy of it may set too."""
    content = yaml.safe_load((CONF / "config.yaml").read_text("utf-8"))
    return list(_leaves(content["hydra"], "hydra"))


def _leaves(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield from _leaves(value, f"{key}.{name}")
    if not items and node != {}:
        yield key, node


def text_of_file(path: Path) -> str:
    """Return the text of a configuration file; raises UserError with the reason if it cannot be read."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{in_words(error)}.") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file in that encoding.") from None


def content_of(path: Path, text: str, package: str) -> Any:
    """Return the mapping that the text of a file is, as OmegaConf's.

    Args:
        path: of the file, for errors.
        package: the node of the configuration that it becomes, dotted; empty for all of it.

    Raises:
        UserError: it is none; the message has file, line and fix.
    """
    try:
        reader = get_yaml_loader()(text)
        node = reader.get_single_node()
        keep_text(node, package)
        content = {} if node is None else reader.construct_document(node)
        if isinstance(content, dict):
            return OmegaConf.create(content)
    except yaml.YAMLError as error:
        raise UserError(f"{path}, line {_line_of(error, text)}: {_meaning(error)}.") from None
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        reason = str(error).partition("\n")[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: {reason}.") from None
    kind = "a list" if isinstance(content, list) else "text"
    raise UserError(f"{path}, line {node.start_mark.line + 1}: {kind}; write KEY: VALUE, e.g. name: mine.")


def _line_of(error: yaml.YAMLError, text: str) -> int:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    return text.count("\n", 0, getattr(error, "position", 0)) + 1


def _meaning(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).partition("\n")[
        0
    ]
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    twice = re.match("found duplicate key (.*)", problem)
    if twice:
        return f"{twice[1]} is there twice; keep one"
    return f"{problem}; check the indentation, and quote text that has special characters"


_SETTINGS = {
    "hydra.launcher": {name for each in SETTINGS.values() for name in fields_of(each)},
    "hydra.sweeper": {"max_batch_size", *(name for each in SEARCHES.values() for name in fields_of(each))}
    - {"params"},
}
