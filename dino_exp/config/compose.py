"""From a command line to checked runs, before anything is created.

Hydra stops at the first problem and reports it in its own words. Here the same overrides go through Hydra's
parser and loader one at a time, so that every problem of every run of a sweep is found and named.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dino_exp.config import data_content, expected, fork, messages, relations
from dino_exp.config.hydra_loader import (
    CompositionError,
    Loader,
    is_basic,
    is_grid,
    loader,
    override_text,
    parse_arguments,
    sweeper_parameters,
    without_hydra,
)
from dino_exp.config.identity import run_id
from dino_exp.config.launcher_settings import (
    SETTINGS,
    objective_problems,
    search_problems,
    settings_problems,
)
from dino_exp.config.library_networks import network_problems
from dino_exp.config.nodes import field_of, parent_of, set_value, similar_siblings
from dino_exp.config.overrides import OverrideReader
from dino_exp.config.plugins import take, unnamed
from dino_exp.config.schema import SCHEMAS, Config, fields_of, schema_of
from dino_exp.config.search_space import Numbers, Space, divide, latest, probes, space_of, space_problems
from dino_exp.config.searches import ENDS_EARLY, SEARCHES
from dino_exp.config.sweep_runs import Findings, Run, same_runs, sweep_name
from dino_exp.config.text_keys import typed_words
from dino_exp.config.validate import field_problems, keys_of, node_problems, validate
from dino_exp.errors import UserError, in_words
from dino_exp.runs import former_names


@dataclass
class Checked:
    """The meaning of a command line."""

    misread: list[str] = field(default_factory=list)
    """Problems that prevent a composition: syntax, unknown keys and options, wrong types."""
    invalid: list[str] = field(default_factory=list)
    """Problems of the composed configurations."""
    warnings: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    multirun: bool = False
    search: str = ""
    """The sweeper that proposes the runs, optuna or boundary, so that none is known in advance; or none."""
    fixed: list[str] = field(default_factory=list)
    """The overrides that all trials of a search share."""
    spaces: list[Space] = field(default_factory=list)
    """What a search proposes values from."""
    local: bool = True
    """The runs are trained in this process."""
    launcher: DictConfig | None = None
    """Hydra's node of the launcher."""
    sweeper: DictConfig | None = None
    """Hydra's node of the sweeper."""
    cfg: DictConfig | None = None
    """The configuration of a single run, without Hydra's node."""
    choices: dict[str, str] = field(default_factory=dict)
    """Chosen option by group, before any sweep."""
    sweep_dir: str | None = None
    """The sweep's folder, derived from its keys; None if the user or a file names one."""
    named_by_id: bool = False
    """The folders of the runs have the names of their ids, and not names that the user or a file gives."""

    @property
    def errors(self) -> list[str]:
        """All problems, one per line; empty if everything can run."""
        return self.misread + self.invalid

    @property
    def extra_overrides(self) -> list[str]:
        """Overrides to add to the command line for Hydra."""
        return [override_text("hydra.sweep.dir", self.sweep_dir)] if self.sweep_dir else []


def compose(overrides: Iterable[str] = ()) -> Config:
    """Return the checked configuration of one run; overrides may have former names.

    Raises:
        UserError: with one line per problem.
    """
    # a DictConfig with these fields
    return cast(Config, compose_run(typed_words(take(list(overrides)))[0]).cfg)


def compose_run(overrides: Sequence[str], config_dir: str | None = None) -> Run:
    """Return one checked run; overrides have present names.

    Raises:
        UserError: with one line per problem.
    """
    checked = check([*([] if config_dir is None else ["--config-dir", config_dir]), *overrides])
    if checked.errors or checked.cfg is None:
        raise UserError("\n".join(checked.errors or ["a sweep has no single configuration"]))
    return checked.runs[0]


def check(argv: Sequence[str]) -> Checked:
    """Compose and validate every run of a command line; create nothing."""
    checked = Checked()
    try:
        arguments = parse_arguments(argv)
        _Preflight(loader(arguments.config_dir), checked).check(arguments.overrides, arguments.multirun)
    except UserError as error:
        checked.misread.append(str(error))
    except OSError as error:
        checked.misread.append(f"{in_words(error)}.")
    return checked


class _Preflight:
    """The steps of `check`: read the overrides, choose the groups, expand the sweep, check each run."""

    def __init__(self, loader: Loader, checked: Checked) -> None:
        self.loader, self.checked = loader, checked
        self.reader = OverrideReader(loader)
        self.hydra_choices: tuple[str, ...] = ()

    def check(self, texts: Sequence[str], multirun: bool) -> None:
        """Fill `checked`."""
        checked, reader = self.checked, self.reader
        overrides = reader.read(texts)
        base = self._base(overrides)
        if base is not None:
            checked.choices = dict(base.hydra.runtime.choices)
            checked.multirun = multirun or base.hydra.mode == RunMode.MULTIRUN
            checked.local = is_basic(base.hydra.launcher)
            checked.launcher, checked.sweeper = base.hydra.launcher, base.hydra.sweeper
            checked.named_by_id = _is_named_by_id(base, checked.multirun)
            self._check_launcher()
            self._check_search(base, overrides)
            of_hydra = [override for override in overrides if override.is_hydra_override()]
            self.hydra_choices = typed(filter(self._is_choice, of_hydra))
            overrides = [override for override in overrides if override not in of_hydra]
            if not checked.multirun:
                overrides = reader.without_sweeps(overrides)
            elif checked.search:
                overrides = latest(reader.read(sweeper_parameters(base)) + overrides)
                overrides = self._fitting(reader.with_spaces(overrides, checked.search), base)
                overrides = latest([*map(self.loader.parse, ENDS_EARLY[checked.search]), *overrides])
                if checked.search == "optuna":
                    checked.misread += space_problems(divide(overrides)[1], base.hydra.sweeper)
            elif is_grid(base.hydra.sweeper):
                overrides = reader.read(sweeper_parameters(base)) + overrides
            if not checked.search:
                overrides = reader.without_intervals(overrides)
            self._check_runs(overrides)
        checked.misread = reader.problems + checked.misread
        if base is not None and checked.multirun and not checked.errors:
            self._check_sweep(overrides, base)
        if checked.search:
            checked.runs.clear()
            checked.fixed, checked.spaces = divide(overrides)

    # ---- composing ------------------------------------------------------------------------------

    def _base(self, overrides: Sequence[Override]) -> DictConfig | None:
        """Return the configuration before any sweep, with Hydra's node."""
        fixed = [override for override in overrides if not override.is_sweep_override()]
        try:
            base = copy.deepcopy(self.loader.compose(typed(filter(self._is_choice, fixed))).whole)
        except CompositionError as error:
            self.reader.drop("", self._explain(error))
            return None
        for override in fixed:
            if override.is_hydra_override() and not self._is_choice(override):
                reason = self.loader.set_in_hydra(base, override)
                if reason and override.key_or_group.startswith("hydra.launcher.sbatch"):
                    reason = "give each sbatch parameter separately: +hydra.launcher.sbatch.NAME=VALUE"
                if reason:
                    near = messages.did_you_mean(similar_siblings(base, override.key_or_group))
                    self.reader.drop(override.key_or_group, f"{override.input_line}: {reason}{near or '.'}")
        return base

    def _is_choice(self, override: Override) -> bool:
        return self.loader.is_group(override.key_or_group)

    def _explain(self, error: CompositionError) -> str:
        where = f"{error.source}.yaml: " if error.source else ""
        missing = re.search(r"Could not find '(.+)/([^/']+)'", str(error))
        if missing:
            group, option = missing.groups()
            problem = messages.unknown_option(group, option, self.loader.options(group))
            return f"{problem} A configuration file asks for it."
        if error.key and error.unknown:
            plain = self.loader.compose(())
            return where + self._unknown_key(error.key, plain.run, plain.choices)
        if error.key:
            return f"{where}{error.key}: {error}."
        return str(error)

    def _unknown_key(self, key: str, cfg: DictConfig, choices: Mapping[str, str]) -> str:
        groups = [group for group in self.loader.groups if self.loader.is_group(group)]
        return messages.unknown_key(key, keys_of(cfg), groups, choices, "train.py")

    def _check_launcher(self) -> None:
        """Check the settings of our own launchers."""
        checked, node = self.checked, self.checked.launcher
        if node is None or schema_of(node) not in SETTINGS.values():
            return
        checked.misread += settings_problems(node)
        if not checked.multirun:
            name = checked.choices.get("hydra/launcher", "")
            checked.misread.append(f"hydra/launcher = {name}: works with -m, also for one run; add -m.")

    def _check_search(self, base: DictConfig, overrides: Sequence[Override]) -> None:
        """Check the settings of a sweeper that proposes runs."""
        checked, node = self.checked, base.hydra.sweeper
        name = next((name for name, schema in SEARCHES.items() if schema_of(node) is schema), "")
        if name and checked.multirun:
            checked.search = name
            found = [problem for _, problem in node_problems("hydra.sweeper.", node, node)]
            checked.misread += found or list(search_problems(node, base.hydra.launcher, name))
        elif name and any(override.key_or_group == "hydra/sweeper" for override in overrides):
            checked.misread.append(f"hydra/sweeper = {name}: works with -m; add -m.")

    def _fitting(self, overrides: Sequence[Override], base: DictConfig) -> list[Override]:
        """Drop the intervals that would give fractions to integer keys."""
        accepted = []
        for override in overrides:
            key = override.key_or_group
            space = space_of(override) if override.is_interval_sweep() else None
            fractions = isinstance(space, Numbers) and not space.whole
            own = field_of(parent_of(base, key), key)
            if fractions and own and str(own.type).startswith("int"):
                interval = override.get_value_string()
                fix = f"{key} takes whole numbers; write {key}=int({interval})"
                self.reader.drop(key, f"{override.input_line}: {fix}.")
            else:
                accepted.append(override)
        return accepted

    # ---- each run -------------------------------------------------------------------------------

    def _check_runs(self, overrides: Sequence[Override]) -> None:
        checked = self.checked
        swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
        misread, invalid, warnings = Findings(), Findings(), Findings()
        for run in self._runs(overrides):
            shown = typed(each for each in run if each.get_key_element() in swept)
            choices = self.hydra_choices + typed(filter(self._is_choice, run))
            try:
                composition = self.loader.compose(choices)
            except CompositionError as error:
                misread.add([self._explain(error)], shown)
                continue
            cfg = copy.deepcopy(composition.run)
            values = [override for override in run if not self._is_choice(override)]
            wrong = self._apply(values, cfg, composition.choices)
            misread.add(wrong, shown)
            if wrong or self.reader.dropped:
                continue
            problems = (
                validate(cfg)
                or list(expected.problems(cfg))
                or unnamed(cfg.plugins)
                or data_content.problems(cfg)
            )
            problems = problems or list(fork.problems(cfg)) or network_problems(cfg)
            if not problems and checked.local:
                problems = list(relations.folder_problems(cfg))
            if not problems and checked.search == "optuna" and checked.sweeper is not None:
                asked = checked.sweeper
                problems = list(objective_problems(cfg, asked["objective"], asked["pruner"]))
            invalid.add(problems, shown)
            if not problems:
                if cfg.expected.knn_top1:
                    expected.settle(cfg, self._experiment(cfg.expected.experiment))
                warnings.add(relations.warnings(cfg), shown)
                checked.runs.append(Run(shown, run_id(cfg), typed(run), cfg))
            checked.cfg = None if checked.multirun else cfg
        checked.misread += misread.lines()
        checked.invalid += invalid.lines()
        checked.warnings += warnings.lines()

    def _runs(self, overrides: Sequence[Override]) -> list[list[Override]]:
        if not self.checked.multirun:
            return [list(overrides)]
        expanded = probes(*divide(overrides)) if self.checked.search else self.loader.expand(overrides)
        return [[self.loader.parse(text) for text in texts] for texts in expanded]

    def _apply(self, overrides: Sequence[Override], cfg: DictConfig, choices: Mapping[str, str]) -> list[str]:
        """Set the values; return the problems of those that cannot be set or are out of bounds."""
        problems, keys = [], set()
        for override in overrides:
            key = override.key_or_group
            problem = self._set(cfg, override, choices)
            if problem is None:
                keys.add(key)
            elif not self._may_follow(key):
                problems.append(problem)
        if problems or self.reader.dropped:
            keys = {key for key in keys if not self._may_follow(key)}
            problems += [problem for key, problem in field_problems(cfg) if key in keys]
        return problems

    def _may_follow(self, key: str) -> bool:
        """Return whether an unknown key may belong to an option that could not be read."""
        group, _, name = key.partition(".")
        schemas = SCHEMAS.get(group, {}).values()
        known = len(schemas) > 1 and any(name in fields_of(schema) for schema in schemas)
        return known and any(self.loader.is_group(dropped) for dropped in self.reader.dropped)

    def _set(self, cfg: DictConfig, override: Override, choices: Mapping[str, str]) -> str | None:
        if parent_of(cfg, override.key_or_group) is None:
            return self._unknown_key(override.key_or_group, cfg, choices)
        return set_value(cfg, override)

    def _experiment(self, name: str) -> DictConfig | None:
        """Return the configuration of an experiment by itself; None if it cannot be composed."""
        try:
            return self.loader.compose((f"experiment={name}",)).run
        except CompositionError:
            return None

    # ---- the entire sweep -----------------------------------------------------------------------

    def _check_sweep(self, overrides: Sequence[Override], base: DictConfig) -> None:
        checked = self.checked
        if not checked.runs:
            checked.invalid.append("-m: the sweep has no runs; one of its lists of values is empty.")
        if checked.named_by_id:
            checked.invalid += same_runs(checked.runs)
        raw: Any = OmegaConf.to_container(base.hydra.sweep, resolve=False)
        if raw["dir"] == "${output_root}/${name}_sweep":
            cfg = without_hydra(base)
            fixed = {each.key_or_group: each for each in overrides if not each.is_sweep_override()}
            for key in ("name", "output_root"):
                if key in fixed:
                    OmegaConf.update(cfg, key, fixed[key].value())
            table = former_names.TABLE  # a sweep keeps its folder when its keys are renamed
            swept = [each.key_or_group for each in overrides if each.is_sweep_override()]
            in_a_file = [parameter.partition("=")[0] for parameter in sweeper_parameters(base)]
            derived = sweep_name(
                cfg.name,
                list(map(table.first_key, swept)),
                table.first_value("sweep", checked.choices.get("sweep")),
                list(map(table.first_key, in_a_file)),
            )
            name = cfg.name if "name" in fixed else derived
            checked.sweep_dir = str(Path(cfg.output_root) / name)


def _is_named_by_id(base: DictConfig, multirun: bool) -> bool:
    """Return whether a run's folder, or its folder in that of the sweep, has the name of its id."""
    raw: Any = OmegaConf.to_container(base.hydra.sweep if multirun else base.hydra.run, resolve=False)
    return raw["subdir"] == "${run_id:}" if multirun else raw["dir"] == "${output_root}/${name}/${run_id:}"


def typed(overrides: Iterable[Override]) -> tuple[str, ...]:
    """Return overrides as they were typed."""
    return tuple(str(override.input_line) for override in overrides)
