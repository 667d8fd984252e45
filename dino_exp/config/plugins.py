"""The modules of others that the user has named: imported here, and nowhere else.

Only the command line (`plugins=[my_package.components]`) and installed packages (entry points of the group
`dino_exp.plugins`) name modules. No configuration file, run, manifest or checkpoint does: what is stored
there only says which module a person would have to name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dino_exp.config.data_schema import PLUGIN
from dino_exp.config.messages import any_of, show
from dino_exp.config.plugin_options import PLUGINS, importing, used_by
from dino_exp.config.schema import SCHEMAS
from dino_exp.config.their_code import in_words
from dino_exp.errors import UserError, refuse, warn

ENTRY_POINTS = "dino_exp.plugins"
"""The group of the entry points that name modules."""
MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
USAGE = "write plugins=[my_package.components], with the dotted names of Python modules"

NAMED: dict[str, str] = {}
"""Modules that the user has named, with the folder in which Python has found each."""


class UnnamedError(UserError):
    """A component of a module that the user has not named."""


def take(words: Sequence[str]) -> list[str]:
    """Import the modules that the user's words name; return the words, with `plugins` as a list.

    Raises:
        UserError: one cannot be imported or registers nothing.
    """
    result = []
    for word in words:
        if word.startswith("plugins="):
            modules = modules_of(word)
            load(modules)
            word = f"plugins=[{','.join(modules)}]"
        result.append(word)
    return result


def modules_of(word: str) -> list[str]:
    """Return the modules that `plugins=...` names; raise UserError if it cannot be read."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        raise UserError(f"{word}: cannot be read; {USAGE}.") from None
    if override.is_sweep_override():
        raise UserError(f"{word}: all runs have the same plugins; {USAGE}.")
    value = override.value()
    modules = value if isinstance(value, list) else [] if value is None else [value]
    for each in modules:
        if not isinstance(each, str) or not MODULE.fullmatch(each) or each.endswith(".py"):
            guess = re.sub(r"\.py$", "", str(each)).strip("./").replace("/", ".")
            meant = f"did you mean {guess}?" if MODULE.fullmatch(guess) else f"{USAGE}."
            raise UserError(f"plugins = {show(each)}: not the name of a module; {meant}")
    return [str(each) for each in modules]


def load(modules: Iterable[str], folder: str | None = None) -> None:
    """Import modules that the user has named, unless that was done.

    Python looks for them where it looks for all modules, and last in `folder`, by default the working folder.

    Raises:
        UserError: one cannot be imported or registers nothing.
    """
    load_installed()
    for name in modules:
        if name not in NAMED:
            with suppress(OSError):  # the working folder is gone
                last = folder or str(Path.cwd())
                if last not in sys.path:  # and stays there, for what is imported later and in other processes
                    sys.path.append(last)
            NAMED[name] = _folder_of(_imported(name))


def load_as_rank_zero(modules: Iterable[str]) -> None:
    """Import the modules that rank 0 has imported; a process that cannot ends, and with it the others."""
    from dino_exp.parallel import distributed

    try:
        load(modules)
    except UserError as error:
        distributed.leave(refuse([str(error)]))


@cache
def load_installed() -> frozenset[str]:
    """Import the modules of installed packages, and return their names.

    One that cannot be imported is said, and ends nothing.
    """
    found = set()
    for each in entry_points(group=ENTRY_POINTS):
        try:
            found.add(_imported(each.module).__name__)
        except UserError as error:
            warn([f"installed {error}"])
    return frozenset(found)


def _imported(name: str) -> ModuleType:
    before = set(PLUGINS)
    with importing(name), in_words(f"plugins = {name}"):
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"no module {error.name} where Python looks for packages or in the working folder; go to the "
                "folder that it is in, install it, or name its folder in PYTHONPATH."
            ) from None
    registers = {plugin.module for plugin in PLUGINS.values()}
    registers |= {plugin.component.__module__ for plugin in PLUGINS.values()}
    if before == set(PLUGINS) and not any(f"{each}.".startswith(f"{name}.") for each in registers):
        raise UserError(
            f"plugins = {name}: registers nothing; put e.g. @register.data('my_set') above a function of "
            f"{module.__file__}."
        )
    return module


def _folder_of(module: ModuleType) -> str:
    """Return the folder in which Python has found a module, or the package that it is in."""
    package = sys.modules[module.__name__.partition(".")[0]]
    if hasattr(package, "__path__"):
        return str(Path(next(iter(package.__path__))).absolute().parent)
    return str(Path(str(package.__file__)).absolute().parent)


# ---- what is stored ----------------------------------------------------------------------------------------


def unnamed(modules: Iterable[str]) -> list[str]:
    """Return the problem with modules of a composed configuration that the user has not named."""
    return [
        f"plugins = {show(each)}: only the command line names code to import, and no file; to use it, type "
        f"plugins=[{each}]."
        for each in modules
        if each not in NAMED
    ]


def refuse_unnamed(what: str, config: dict[str, Any]) -> None:
    """Raise UnnamedError if a stored configuration has components of modules that the user has not named.

    Args:
        what: has the configuration, for the message.
        config: plain, from anybody.
    """
    nodes = {group: config.get(group) for group in SCHEMAS}
    targets = {group: str(node.get("_target_")) for group, node in nodes.items() if isinstance(node, dict)}
    others = {group: each for group, each in targets.items() if each.startswith(PLUGIN)}
    if others:
        load_installed()
    lost = [each.removeprefix(PLUGIN).replace(".", "=", 1) for each in others.values() if each not in PLUGINS]
    if lost:
        stored = config.get("plugins")
        modules = [str(each) for each in stored] if isinstance(stored, list) else []
        named = ",".join(modules) if modules else "MODULE"
        raise UnnamedError(
            f"{what}: its {any_of(lost)} is not of this project; if you trust the code that has it, add "
            f"plugins=[{named}]{'' if modules else ' or install its package'}."
        )


def refuse_in_jobs(cfg: Any) -> None:
    """Raise UserError if a configuration has components that another process cannot import by a name."""
    for plugin in used_by(cfg).values():
        if plugin.module not in {*NAMED, *load_installed()}:
            raise UserError(
                f"{plugin.option} ({plugin.place}): jobs import modules by name; put it into one and add "
                "plugins=[MODULE]."
            )


def named_by(config: dict[str, Any], status: Mapping[str, Any]) -> dict[str, str]:
    """Return the modules that a run was started with and the folder of each, as its files say."""
    stored, about = config.get("plugins"), status.get("plugins", {})
    modules = [str(each) for each in stored] if isinstance(stored, list) else []
    folders = {name: each.get("folder") for name, each in about.items() if isinstance(each, dict)}
    return {name: str(folders.get(name) or "") for name in modules if MODULE.fullmatch(name)}


def code_of(cfg: Any) -> dict[str, dict[str, str]]:
    """Return folder and digest of the modules that a configuration's components come from, by module."""
    return {
        plugin.module: {"folder": NAMED.get(plugin.module, ""), "sha256": plugin.code()}
        for plugin in used_by(cfg).values()
    }
