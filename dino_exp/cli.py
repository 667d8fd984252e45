"""The command line of `train.py`: check everything, then let Hydra run it, then say how it ended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dino_exp.config.compose import Checked, check
from dino_exp.config.help import print_help
from dino_exp.config.hydra_loader import CONFIG_NAME, VERSION_BASE, loader, parse_arguments
from dino_exp.config.identity import run_id
from dino_exp.config.register import CONF, register
from dino_exp.config.schema import SCHEMAS
from dino_exp.errors import FAILED, INTERRUPTED, UserError, refuse, warn
from dino_exp.parallel.rank_zero import in_all_processes
from dino_exp.runs import former_names
from dino_exp.train.attempt import Outcome, attempt

STATE_STYLES = {"finished": "green", "failed": "bold red", "collapsed": "red", "preempted": "yellow"}


class Job(NamedTuple):
    """What rank 0 tells the other processes to train."""

    config: str
    """The resolved configuration, as YAML."""
    directory: Path
    group: str | None


_outcomes: list[Outcome] = []
"""Of the runs in this process, in order; Hydra's launcher keeps what its runs return to itself."""

_planned: dict[str, tuple[str, ...]] = {}
"""The swept overrides of the runs in this process, by run id."""

checked_jobs: dict[tuple[str, ...], DictConfig] = {}
"""The configurations of the sweep at hand, by all overrides of a run, so that nobody composes them again."""


def main(argv: Sequence[str] | None = None) -> int:
    """Check and run a command line; returns the exit code.

    Of several processes, rank 0 does so, and the others only train what it tells them to.

    0: done. 2: the configuration or a file is wrong, and nothing was created. Otherwise the run's own code; a
    sweep's is 1 if any of its runs failed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return in_all_processes(lambda: command_line(words), follow)


def follow() -> int:
    """Train what rank 0 sends, until it sends the exit code."""
    from dino_exp.parallel import distributed

    order: Job | int = distributed.from_main(FAILED)
    while isinstance(order, Job):
        cfg = OmegaConf.create(order.config)
        assert isinstance(cfg, DictConfig)
        attempt(cfg, order.directory, order.group)
        order = distributed.from_main(FAILED)
    return order


def command_line(argv: list[str]) -> int:
    """`main` where this process alone decides."""
    try:
        arguments = parse_arguments(argv)
    except UserError as error:
        return refuse([str(error)])
    words, renamed = former_names.TABLE.present_words(arguments.overrides)
    argv = [*(word for word in argv if word not in arguments.overrides), *words]
    warn(renamed)
    if arguments.help:
        return show_help([word for word in argv if word not in ("--help", "-h")], arguments.config_dir)
    if arguments.hydra_help or arguments.info or arguments.shell_completion:
        hand_over(argv)
        return 0
    checked = check(argv)
    if arguments.cfg:  # shows a configuration also where it cannot run yet
        if checked.misread:
            return refuse(checked.misread)
        hand_over(argv)
        warn(checked.invalid)
        return 0
    if checked.errors:
        return refuse(checked.errors)
    warn(checked.warnings)
    return run(argv, checked)


def show_help(argv: Sequence[str], config_dir: str | None) -> int:
    """Print the help with the values that the command line would have."""
    checked = check(argv)
    if checked.cfg is None:
        checked = check([])
    if checked.cfg is None:
        return refuse(checked.errors)
    options = loader(config_dir)
    others = [group for group in options.groups if options.is_group(group) and group not in SCHEMAS]
    groups = [*SCHEMAS, *others, "hydra/launcher", "hydra/sweeper"]
    print_help(
        Console(),
        checked.cfg,
        checked.choices,
        {group: options.options(group) for group in groups},
        None if checked.local else checked.launcher,
        checked.sweeper,
    )
    return 0


def hand_over(argv: Sequence[str]) -> None:
    """Let Hydra do what the command line says; it reads `sys.argv`, and wants the flags first."""
    register()
    overrides = parse_arguments(argv).overrides
    flags = [word for word in argv if word not in overrides]
    sys.argv = [sys.argv[0], *flags, *overrides]
    hydra.main(version_base=VERSION_BASE, config_path=str(CONF), config_name=CONFIG_NAME)(task)()


def run(argv: Sequence[str], checked: Checked) -> int:
    """Run what was checked."""
    _outcomes.clear()
    _planned.clear()
    _planned.update({run.run_id: run.overrides for run in checked.runs})
    checked_jobs.clear()
    checked_jobs.update({run.job: run.cfg for run in checked.runs if run.cfg is not None})
    try:
        hand_over([*argv, *checked.extra_overrides])
    except KeyboardInterrupt:
        if not _outcomes or _outcomes[-1].state != "preempted":
            _outcomes.append(Outcome("", "preempted", INTERRUPTED, "stopped between two runs"))
        if checked.search:
            return _outcomes[-1].exit_code
    finally:
        if checked.multirun and checked.local and not checked.search:
            Console().print(sweep_table(checked, _outcomes))
    if checked.search:
        return 0  # one without any result has ended this process
    return exit_code(_outcomes, checked.multirun)


def note(outcome: Outcome) -> None:
    """How a run ended that happened elsewhere."""
    _outcomes.append(outcome)


def exit_code(outcomes: Sequence[Outcome], multirun: bool) -> int:
    """A single run's own; of a sweep, 1 if any run failed, else that of the run that was stopped, else 0."""
    if not multirun:
        return outcomes[-1].exit_code if outcomes else 0
    if any(outcome.state in ("failed", "lost") for outcome in outcomes):
        return FAILED
    return next((outcome.exit_code for outcome in outcomes if outcome.exit_code), 0)


def task(cfg: DictConfig) -> Outcome:
    """One run, called by Hydra in the process where it happens.

    Nothing is raised, because Hydra would show a shortened traceback and end a sweep with it; except when the
    run was stopped, which stops the sweep.
    """
    settings = HydraConfig.get()
    directory = Path(settings.runtime.output_dir)
    multirun = settings.mode == RunMode.MULTIRUN
    if multirun:
        number = f"[{len(_outcomes) + 1}/{len(_planned)}] " if _planned else ""
        overrides = _planned.get(run_id(cfg), settings.overrides.task)
        Console(soft_wrap=True).print(Text(f"\n{number}{' '.join(overrides)}", style="bold"))
    group = Path(settings.sweep.dir).name if multirun else None
    # torch comes last: refusing and helping need not wait for it
    from dino_exp.parallel import distributed

    distributed.from_main(Job(OmegaConf.to_yaml(cfg, resolve=True), directory, group))
    outcome = attempt(cfg, directory, group)
    _outcomes.append(outcome)
    if outcome.state == "preempted" and multirun:
        raise KeyboardInterrupt
    return outcome


def sweep_table(checked: Checked, outcomes: Sequence[Outcome]) -> Table:
    """All runs of a sweep: what differs, how it ended, the verdict or the error."""
    table = Table(
        title=f"Sweep {checked.sweep_dir or ''}".rstrip(),
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("run", overflow="fold")
    table.add_column("folder", no_wrap=True, style="dim")
    table.add_column("state", no_wrap=True)
    table.add_column("result", overflow="fold")
    ended = {outcome.run_id: outcome for outcome in outcomes}
    for planned in checked.runs:
        outcome = ended.get(planned.run_id)
        state = outcome.state if outcome else "not started"
        message = outcome.message if outcome else ""
        line = (message.strip().splitlines() or [""])[-1 if state == "failed" else 0]
        table.add_row(
            Text(" ".join(planned.overrides) or "(no sweep)"),
            f"…{planned.run_id[-8:]}",
            Text(state, style=STATE_STYLES.get(state, "dim")),
            Text(line),
        )
    return table
