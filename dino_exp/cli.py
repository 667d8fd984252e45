"""The command line of `train.py`: check everything, have Hydra call us for each run, print how it ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text

from dino_exp.config.compose import Checked, check, compose_run
from dino_exp.config.data_content import forget, identify
from dino_exp.config.help import print_help
from dino_exp.config.hydra_loader import loader, parse_arguments
from dino_exp.config.identity import run_id
from dino_exp.config.plugins import load_as_rank_zero, take
from dino_exp.config.schema import Config
from dino_exp.config.sweep_runs import Findings, Run, same_runs
from dino_exp.config.text_keys import typed_words
from dino_exp.console import STATE_STYLES, Console
from dino_exp.errors import FAILED, INTERRUPTED, UserError, refuse, warn
from dino_exp.parallel.rank_zero import in_all_processes
from dino_exp.streams import protect
from dino_exp.training.attempt import Outcome, attempt, remove_if_empty
from dino_exp.training.forks import with_parent


class Job(NamedTuple):
    """What rank 0 tells the other processes to train."""

    config: str
    """The resolved configuration, as YAML."""
    directory: str
    group: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Check and run a command line; return the exit code.

    With several processes, rank 0 does so, and the others train what it sends them.

    0: done. 2: the configuration or a file is wrong, and nothing was created. Otherwise the run's own code; a
    sweep's is 1 if any of its runs failed.
    """
    protect()
    words = list(sys.argv[1:] if argv is None else argv)
    return in_all_processes(lambda: command_line(words), follow)


def follow() -> int:
    """Train what rank 0 sends, until it sends the exit code."""
    from dino_exp.parallel import distributed

    order: Any = distributed.from_main(FAILED)
    while not isinstance(order, int):
        job = Job(*order)
        cfg = OmegaConf.create(job.config)
        assert isinstance(cfg, DictConfig)
        load_as_rank_zero(cfg.plugins)
        attempt(cfg, Path(job.directory), job.group)
        order = distributed.from_main(FAILED)
    return order


def command_line(argv: list[str]) -> int:
    """Check and run a command line on rank 0; return the exit code."""
    try:
        arguments = parse_arguments(argv)
        words, renamed = typed_words(take(arguments.overrides))
        words = with_parent(words)
    except UserError as error:
        return refuse([str(error)])
    argv = [*(word for word in argv if word not in arguments.overrides), *words]
    warn(renamed)
    if arguments.help:
        ignored = ("--help", "-h", "--multirun", "-m")  # a sweep has no single configuration to show
        return show_help([word for word in argv if word not in ignored], arguments.config_dir)
    if arguments.hydra_help or arguments.info or arguments.shell_completion:
        return show(argv)
    checked = check(argv)
    if arguments.cfg:  # also shows a configuration that cannot run yet
        if checked.misread:
            return refuse(checked.misread)
        show(argv)
        warn(checked.invalid)
        return 0
    try:
        make_ready(checked)
    except UserError as error:
        return refuse(str(error).split("\n"))
    return run(words, arguments.config_dir, checked)


def make_ready(checked: Checked) -> None:
    """Name the runs by the images that they are trained on, and print what is odd about them.

    Raises UserError, one line per problem, if they cannot be trained.
    """
    if checked.errors:
        raise UserError("\n".join(checked.errors))
    warn(checked.warnings)
    forget()
    checked.runs, problems, notes = identify(checked.runs, checked.local)
    if checked.multirun and checked.named_by_id and not problems:
        problems = same_runs(checked.runs)
    if problems:
        raise UserError("\n".join(problems))
    warn(notes)
    refuse_changed_images(checked)
    if problems := weights_problems(checked):
        raise UserError("\n".join(problems))


def show_help(argv: Sequence[str], config_dir: str | None) -> int:
    """Print the help page with the values of this command line, or of none if it cannot be composed."""
    checked = check(argv)
    if checked.cfg is None:
        checked = check([])
    if checked.cfg is None:
        return refuse(checked.errors)
    print_help(Console(), checked, loader(config_dir))
    return 0


def show(argv: Sequence[str]) -> int:
    """Print what the command line asks for, as Hydra shows it."""
    arguments = parse_arguments(argv)
    try:
        loader(arguments.config_dir).show(arguments)
    except UserError as error:
        return refuse([str(error)])
    return 0


def refuse_changed_images(checked: Checked) -> None:
    """Raise UserError if a run would begin anew only because its images have changed; note others' ends.

    Only folders that the program names are looked at: whoever names one wants it.
    """
    runs = [run for run in checked.runs if run.cfg.data_content]
    if not runs or not checked.named_by_id or (checked.multirun and checked.sweep_dir is None):
        return
    from dino_exp.training import same_run

    ids = {run.run_id for run in runs}
    for run in runs:
        folder = Path(checked.sweep_dir or Path(run.cfg.output_root, run.cfg.name))
        if note := same_run.refuse_changed_images(folder, run.cfg, ids):
            Console(soft_wrap=True).print(note)


def weights_problems(checked: Checked) -> list[str]:
    """Return why the weights that runs begin with do not fit, reading them once for each kind of network."""
    found, known = Findings(), {}
    for run in checked.runs:
        cfg = run.cfg
        if cfg.init_from and not cfg.fork_from:
            from dino_exp.training import networks  # late, as torch comes with it

            needed = (cfg.init_from, cfg.init_parts, cfg.init_adapt, cfg.backbone, cfg.head)
            key = str((*needed, cfg.data.channels, cfg.crops.global_size))
            if key not in known:
                known[key] = networks.weights_problems(cast(Config, cfg))
            found.add(known[key], run.overrides)
    return found.lines()


def run(words: Sequence[str], config_dir: str | None, checked: Checked) -> int:
    """Run what was checked, with these overrides; return the exit code."""
    runs = Runs(checked, words, config_dir)
    outcomes, mode = runs.outcomes, RunMode.MULTIRUN if checked.multirun else RunMode.RUN
    try:
        loader(config_dir).run(runs, [*words, *checked.extra_overrides], mode)
    except UserError as error:
        return refuse([str(error)])
    except KeyboardInterrupt:
        if not outcomes or outcomes[-1].state != "preempted":
            outcomes.append(Outcome("", "preempted", INTERRUPTED, "stopped between two runs"))
        if checked.search:
            return outcomes[-1].exit_code
    finally:
        if checked.multirun and checked.local and not checked.search:
            Console().print(sweep_table(checked, outcomes))
    if checked.search:
        return 0  # it raises its own
    if checked.local and not outcomes:
        refuse(["Nothing was trained: Hydra has started no run."])
        return FAILED
    return exit_code(outcomes, checked.multirun)


class Runs:
    """The runs of one command line: what Hydra calls for each run, and what our plugins take the runs from.

    Args:
        checked: what the command line means.
        typed: its overrides.
        config_dir: what `--config-dir` names, or None.
    """

    def __init__(self, checked: Checked, typed: Sequence[str], config_dir: str | None) -> None:
        self.checked, self.typed, self.config_dir = checked, typed, config_dir
        self.outcomes: list[Outcome] = []
        self._known = {run.job: run for run in checked.runs}
        self._there: set[Path] = set()
        for run in checked.runs:
            with suppress(OSError):  # the working folder is gone
                root = Path(os.path.abspath(run.cfg.output_root))  # noqa: PTH100 (as Hydra does)
                self._there |= {each for each in (root, *root.parents) if os.path.lexists(each)}

    def run_of(self, job: Sequence[str]) -> Run:
        """Return the checked run with these overrides; composed only if a search or a plugin proposed it.

        Raises:
            UserError: these overrides do not go together.
        """
        words = tuple(job)
        if words not in self._known:
            shared = {*self.typed, *self.checked.fixed}
            own = tuple(word for word in words if word not in shared)
            (run,), problems, _ = identify([compose_run(words, self.config_dir)], self.checked.local)
            if problems:
                raise UserError("\n".join(problems))
            self._known[words] = replace(run, overrides=own)
        return self._known[words]

    def __call__(self, cfg: DictConfig) -> Outcome:
        """Train one run, in the process and the directory that Hydra has chosen.

        Nothing is raised, because Hydra would show a shortened traceback or nothing at all; except when the
        run was stopped, which stops the sweep.
        """
        settings = HydraConfig.get()
        directory = Path(settings.runtime.output_dir)
        multirun = settings.mode == RunMode.MULTIRUN
        if multirun:
            task, runs = tuple(settings.overrides.task), self.checked.runs
            run = self._known.get(task)
            header = " ".join(run.overrides if run else task)
            if run in runs:
                header = f"[{runs.index(run) + 1}/{len(runs)}] {header}"
            Console(soft_wrap=True).print(f"\n{header}", style="bold")
        if cfg.expected.knn_top1:  # Hydra's has that of the file, which may not be for this run
            cfg.expected = self.run_of(settings.overrides.task).cfg.expected
        group = Path(settings.sweep.dir).name if multirun else None
        # torch comes last: refusing and helping need not wait for it
        from dino_exp.parallel import distributed
        from dino_exp.training.same_run import directory_name

        if directory.name == run_id(cfg) != (name := directory_name(directory.parent, cfg)):
            remove_if_empty(directory, self._there)
            directory = directory.with_name(name)
        distributed.from_main(Job(OmegaConf.to_yaml(cfg, resolve=True), str(directory), group))
        outcome = attempt(cfg, directory, group, self._there)
        self.outcomes.append(outcome)
        if outcome.state == "preempted" and multirun:
            raise KeyboardInterrupt
        return outcome


def exit_code(outcomes: Sequence[Outcome], multirun: bool) -> int:
    """Return a single run's code; for a sweep 1 if any run failed, else that of a stopped run, else 0."""
    if not multirun:
        return outcomes[-1].exit_code if outcomes else 0
    if any(outcome.state in ("failed", "lost") for outcome in outcomes):
        return FAILED
    return next((outcome.exit_code for outcome in outcomes if outcome.exit_code), 0)


def sweep_table(checked: Checked, outcomes: Sequence[Outcome]) -> Table:
    """Return the table of a sweep's runs: swept overrides, folder, state, and the verdict or the error."""
    title = f"Sweep {checked.sweep_dir or ''}".rstrip()
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("folder", no_wrap=True, style="dim")
    table.add_column("state", no_wrap=True)
    table.add_column("result", overflow="fold")
    ended = {outcome.run_id: outcome for outcome in outcomes}
    for planned in checked.runs:
        outcome = ended.get(planned.run_id)
        state, message = (outcome.state, outcome.message) if outcome else ("not started", "")
        line = (message.strip().splitlines() or [""])[-1 if state == "failed" else 0]
        table.add_row(
            " ".join(planned.overrides) or "(no sweep)",
            f"…{planned.run_id[-8:]}",
            Text(state, style=STATE_STYLES.get(state, "dim")),
            line,
        )
    return table
