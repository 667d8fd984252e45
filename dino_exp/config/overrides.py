"""Reading the overrides of a command line one at a time, so that each bad one is named."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from dino_exp.config.hydra_loader import FORK, GIVEN, Loader, to_paste
from dino_exp.config.messages import closest, did_you_mean, unknown_option
from dino_exp.config.schema import SCHEMAS
from dino_exp.config.search_space import divide
from dino_exp.config.searches import key_problems, number_problem
from dino_exp.config.text_keys import takes_one_text
from dino_exp.errors import UserError

SEVERAL = {"eval"}
"""Groups that take a list of options."""


class OverrideReader:
    """Sorts overrides into well-formed ones and problems; option names are checked here, keys later."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.problems: list[str] = []
        self.dropped: set[str] = set()
        """Keys of the overrides that were dropped because they could not be read."""

    def drop(self, key: str, problem: str) -> None:
        """Drop an override and record why."""
        self.dropped.add(key)
        if problem not in self.problems:
            self.problems.append(problem)

    def read(self, texts: Sequence[str]) -> list[Override]:
        """Return the well-formed overrides; those that choose an option must name an existing one."""
        accepted: list[Override] = []
        for text in texts:
            try:
                override = self.loader.parse(text)
            except HydraException:
                self.drop(text.split("=")[0].lstrip("+~"), self._malformed(text))
                continue
            key = override.key_or_group
            problem = self._problem(override, text)
            if self.loader.is_group(key) and any(other.key_or_group == key for other in accepted):
                problem = f"{text}: {key} is chosen twice; keep one."
            if problem:
                self.drop(key, problem)
            else:
                accepted.append(override)
        return accepted

    def without_sweeps(self, overrides: Sequence[Override]) -> list[Override]:
        """Drop the overrides that need a sweep."""
        for override in overrides:
            if override.is_sweep_override():
                key, value = override.key_or_group, override.get_value_string()
                fix = "add -m to train once for each"
                if override.is_interval_sweep():
                    fix = "add -m hydra/sweeper=optuna to search it"
                elif takes_one_text(key):
                    fix += f", or quote it as one text: {to_paste(key, value)}"
                elif "(" not in value and (key in SEVERAL or not self.loader.is_group(key)):
                    fix += f", or write the list as {key}=[{value}]"
                end = "" if takes_one_text(key) else "."  # it would be pasted with the last word
                self.drop(key, f"{override.input_line}: several values; {fix}{end}")
        return [override for override in overrides if not override.is_sweep_override()]

    def without_intervals(self, overrides: Sequence[Override]) -> list[Override]:
        """Drop the overrides that need a search."""
        for override in overrides:
            if override.is_interval_sweep():
                key = override.key_or_group
                fix = f"{key}=0.1,0.2 or {key}=range(...)"
                self.drop(key, f"{override.input_line}: Hydra's basic sweeper needs single values: {fix}.")
        return [override for override in overrides if not override.is_interval_sweep()]

    def with_spaces(self, overrides: Sequence[Override], search: str) -> list[Override]:
        """Drop empty or invalid spaces of a search; having none at all is a problem, too."""
        accepted = []
        for override in overrides:
            try:
                found = list(key_problems(search, divide([override])[1]))
                if found:
                    raise UserError(found[0])
                accepted.append(override)
            except UserError as error:
                self.drop(override.key_or_group, str(error))
        swept = sum(override.is_sweep_override() for override in accepted)
        if not self.dropped and search == "boundary" and swept not in (2, 3):
            self.drop("", number_problem(swept))
        elif not self.dropped and not swept:
            self.drop(
                "", "hydra/sweeper = optuna: nothing to search; give keys an interval or several values."
            )
        return accepted

    def _malformed(self, text: str) -> str:
        if "=" not in text:
            if self.loader.is_group(text):
                return f"{text}: write {text}=OPTION; options: {', '.join(self.loader.options(text))}."
            return f"{text}: overrides are written key=value, e.g. trainer.epochs=5."
        key, _, value = text.partition("=")
        if value.startswith("~"):
            return f"{text}: ~ is not expanded; write $HOME{value[1:]}."
        return f"{text}: cannot be read; quote it for the shell and Hydra: {to_paste(key, value)}"

    def _problem(self, override: Override, text: str) -> str | None:
        key = override.key_or_group
        if override.is_hydra_override() and "/" not in key:
            if override.is_sweep_override():
                return f"{text}: Hydra's own settings cannot be swept."
            group = key.replace(".", "/")
            if self.loader.is_group(group):
                options = ", ".join(self.loader.options(group))
                return f"{text}: a group; write {group}=OPTION; options: {options}."
            if key == "hydra.job.chdir" and override.value():
                meaning = "relative paths would change their meaning"
                return f"{text}: not supported, because {meaning}; a run writes into its directory anyway."
            if key == "hydra.searchpath":
                return f"{text}: use --config-dir DIR, whose options are checked and completed as well."
            return None
        if override.is_delete():
            return f"{text}: nothing can be removed; choose another option or value, e.g. tracker=none."
        if override.package is not None:
            return f"{text}: packages (@) are not supported; write {key}=OPTION."
        if self.loader.is_group(key):
            return self._option_problem(override, text)
        if "/" in key:
            near = closest(key.partition("/")[0], SCHEMAS)[:1]
            return f"{key}: no such group{did_you_mean(near) or '.'}"
        return None

    def _option_problem(self, override: Override, text: str) -> str | None:
        key = override.key_or_group
        options = self.loader.options(key)
        if override.is_add() or override.is_force_add():
            return f"{text}: {key} has an option already; write it without '+'."
        if override.is_interval_sweep():
            return f"{text}: {key} takes options; options: {', '.join(options)}."
        values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
        for value in values:
            name = getattr(value, "text", value)  # a quoted string
            names = name if isinstance(name, list) and key in SEVERAL else [name]
            if not names or any(isinstance(each, (list, dict)) or each is None for each in names):
                return f"{text}: {key} takes one option; options: {', '.join(options)}."
            for each in map(str, names):
                if each not in (*options, GIVEN) and not each.startswith(FORK):
                    return unknown_option(key, each, options)
        return None
