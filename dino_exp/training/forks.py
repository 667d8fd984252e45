"""Forks: which checkpoint of which run `fork_from` names, and a run that begins with it.

A fork begins as the directory of a run that was stopped at that step: with the parent's metrics up to there,
and a `last.pt` of its own. From then on it needs its parent no longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from yaml import YAMLError

from dino_exp.atomic import write_text_atomically
from dino_exp.config.fork import Parent, changes, experiment_of, fixed
from dino_exp.config.messages import any_of, show
from dino_exp.config.schema import Config
from dino_exp.config.stored import from_plain, parse, read_config, read_if_possible, read_plain, write_config
from dino_exp.config.targets import build
from dino_exp.errors import UserError
from dino_exp.paths import expanded
from dino_exp.runs.kept_checkpoints import kept
from dino_exp.runs.run_directory import RunDirectory, to_json

if TYPE_CHECKING:  # importing torch takes seconds, which most command lines need not wait for
    from dino_exp.training.trainer import Trainer

PARENT = "parent.yaml"
"""The parent's configuration, in the directory of a fork."""
NEAREST = 3


# ---- the command line --------------------------------------------------------------------------------------


def with_parent(words: Sequence[str]) -> list[str]:
    """Return overrides with the parent's experiment in place of `fork_from=RUN@STEP`, if they have one.

    Raises:
        UserError: the run, or its checkpoint of that step, is missing; or the words do not go together.
    """
    typed = next((word for word in words if word.startswith("fork_from=")), None)
    text = None if typed is None else _value(typed)
    if text is None:
        return list(words)
    others = [word for word in words if word != typed]
    for word in others:
        if word.startswith(("fork_from=", "experiment=")):
            raise UserError(f"{word}: a fork has the settings of one run, its parent; drop this.")
    return [f"experiment={experiment_of(parent_of(text))}", *others]


def _value(word: str) -> str | None:
    try:
        override = OverridesParser.create().parse_override(word)
        value = None if override.is_sweep_override() else override.value()
    except HydraException:
        raise UserError(f"{word}: cannot be read; write fork_from=RUN@STEP.") from None
    if override.is_sweep_override() or not (value is None or isinstance(value, str)):
        raise UserError(f"{word}: all runs of a command line have one parent; write fork_from=RUN@STEP.")
    return value


def parent_of(text: str) -> Parent:
    """Return the parent that `fork_from` names; step 0 is the start of every run.

    Raises:
        UserError: the run, or its checkpoint of that step, is missing or cannot be read.
    """
    path, step = _run_and_step(text)
    if not (path / "config.yaml").is_file():
        return _from_a_fork(text, path, step)
    directory = RunDirectory(path)
    config = read_config(directory)
    if step is None:
        step = _step_of_last(directory, text)
    if step == 0 and config.fork_from:
        raise UserError(f"fork_from = {text}: a fork itself, which began as {config.fork_from}; give that.")
    if (
        step
        and step not in kept(directory.checkpoints)
        and step not in (steps := checkpoints(directory))
        and step not in _known_to_forks(path)  # one of which may be resumed
    ):
        raise UserError(f"fork_from = {text}: {not_kept(steps, step)}")
    return Parent(path, step, config)


def _run_and_step(text: str) -> tuple[Path, int | None]:
    run, at, step = text.rpartition("@")
    if not at:
        return expanded(text).absolute(), None
    if re.fullmatch(r"\d{1,16}", step):
        return expanded(run).absolute(), int(step)
    if expanded(run).is_dir():
        raise UserError(f"fork_from = {text}: {step or 'nothing'} is no step; write {run}@500.")
    return expanded(text).absolute(), None


def _step_of_last(directory: RunDirectory, text: str) -> int:
    from dino_exp.training.checkpoint import load, newest

    last = newest(directory.checkpoints)
    if last is None:
        raise UserError(f"fork_from = {text}: no checkpoint there yet; @0 begins it again.")
    return int(load(directory.checkpoints / last)["step"])


def checkpoints(directory: RunDirectory) -> dict[int, Path]:
    """Return all checkpoints of a run by step; those without a step in their name are read."""
    from dino_exp.training.checkpoint import BEST, LAST, PREVIOUS, load

    found = {}
    for path in (directory.checkpoints / name for name in (BEST, PREVIOUS, LAST)):
        with suppress(UserError, TypeError, ValueError):
            found[int(load(path)["step"])] = path
    return found | kept(directory.checkpoints)


def not_kept(steps: Mapping[int, Path], step: int) -> str:
    """Return in words that a run has no checkpoint of a step, and which are the nearest."""
    near = sorted(sorted(steps, key=lambda each: (abs(each - step), each))[:NEAREST])
    if not near:
        return f"step {step:,} was not kept, nor any other. @0 begins it again."
    words = any_of([f"@{each}" for each in near])
    return (
        f"step {step:,} was not kept; the nearest {'is' if len(near) == 1 else 'are'} {words}. Runs keep "
        "more with trainer.keep_checkpoints=every:N."
    )


def _known_to_forks(path: Path) -> dict[int, Path]:
    """Return the configuration of a run as its forks in the same output folder have it, by their steps."""
    found = {}
    for file in sorted(path.parent.parent.glob(f"*/*/{PARENT}")):
        place = str(read_if_possible(file.with_name("config.yaml"), []).get("fork_from"))
        run, _, step = place.rpartition("@")
        if run == str(path) and step.isdigit():
            found[int(step)] = file
    return found


def _from_a_fork(text: str, path: Path, step: int | None) -> Parent:
    """Return a parent that is gone as its forks know it. Raises UserError if there is none."""
    forks = _known_to_forks(path)
    found = {each: file for each, file in forks.items() if step in (None, each)}
    if len(found) == 1:
        ((known, file),) = found.items()
        return Parent(path, known, from_plain(RunDirectory(file.parent), read_if_possible(file, [])))
    if forks:
        steps = any_of([f"@{each}" for each in forks])
        raise UserError(f"fork_from = {text}: that run is gone; it has forks of {steps}.")
    if not path.exists():
        raise UserError(f"fork_from = {text}: no such run; give its directory, e.g. outputs/demo/RUN@500.")
    runs = sorted(each.parent.name for each in path.glob("*/config.yaml"))
    example = f", e.g. {path / runs[0]}" if runs else ""
    raise UserError(
        f"fork_from = {text}: not the directory of a run, as it has no config.yaml; give one{example}."
    )


# ---- the run -----------------------------------------------------------------------------------------------


def begin(trainer: Trainer) -> None:
    """Restore the parent's checkpoint: networks, center, optimizer, verdict, and the step.

    The schedules are those of the fork's own configuration and length, from that step on. What is the best
    checkpoint is decided anew.

    Raises:
        UserError: the checkpoint is missing, cannot be read, or does not fit; nothing was written.
    """
    from dino_exp.training import checkpoint

    cfg, place = trainer.cfg, str(trainer.cfg.fork_from)
    path, step = _run_and_step(place)
    directory = RunDirectory(path)
    file = kept(directory.checkpoints).get(step or 0) or checkpoints(directory).get(step or 0)
    if file is None:
        raise UserError(f"fork_from = {place}: {not_kept(checkpoints(directory), step or 0)}")
    state = checkpoint.load(file)
    if state["step"] != step:
        raise UserError(f"{file}: the checkpoint of step {state['step']}, and not of {step}.")
    try:
        text = state["config"].encode()
        # earlier versions stored interpolations in checkpoints, but never in config.yaml
        plain = read_plain(directory) if b"${" in text else parse(text)
        if lines := list(fixed(plain, cfg)):
            raise UserError("\n".join(lines))
        parent = from_plain(directory, plain)
        if not state["scaler"]:  # the parent has trained without one
            state["scaler"] = trainer.scaler.state_dict()
        trainer.restore(state)
    except UserError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, YAMLError) as error:
        reason = shorten(str(error), 300)
        raise UserError(f"{file}: does not fit this run: {type(error).__name__}: {reason}") from error
    if trainer.step >= trainer.plan.stop_step:
        raise UserError(
            f"fork_from = {place}: the fork ends at step {trainer.plan.stop_step:,}; fork an earlier step, "
            f"or raise trainer.epochs = {cfg.trainer.epochs} or trainer.max_steps = "
            f"{show(cfg.trainer.max_steps)}."
        )
    if trainer.ends_early:
        raise UserError(
            f"fork_from = {place}: the run had collapsed by then; fork an earlier step, or add "
            "trainer.on_collapse=warn."
        )
    if cfg.loss.centering != "mean":
        trainer.dino_loss.center.zero_()
    trainer.evaluations.best, trainer.parent = {}, OmegaConf.to_yaml(OmegaConf.create(plain))
    trainer.taken = {"parent": f"{path}, step {trainer.step:,}", **dict(_said(trainer, parent))}


def _said(trainer: Trainer, parent: Config) -> Iterator[tuple[str, str]]:
    """Yield what a person should know of a fork, as name and text."""
    from dino_exp.training.plan import Plan

    for key, (there, here) in changes(parent, trainer.cfg).items():
        yield key, f"{show(there)} → {show(here)}"
    step, plan = trainer.step, trainer.plan
    before = Plan.of(parent, len(trainer.splits.train))
    if before.total_steps != plan.total_steps:
        yield (
            "length",
            f"{before.total_steps:,} → {plan.total_steps:,} steps; from step {step:,} on, the schedules are "
            "those of the new length",
        )
    temp = build(parent.loss, out_dim=parent.head.out_dim).teacher_temp_at(before.epoch(step))
    then = min(step, before.total_steps - 1)
    for name, old, new in (
        ("learning rate", before.lr[then], plan.lr[step]),
        ("weight decay", before.weight_decay[then], plan.weight_decay[step]),
        ("teacher's momentum λ", before.ema_momentum[then], plan.ema_momentum[step]),
        ("teacher temperature τ_t", temp, trainer.dino_loss.teacher_temp_at(plan.epoch(step))),
    ):
        if old != new:
            yield name, f"{old:.4g} before, {new:.4g} after the fork"


def found(directory: RunDirectory, trainer: Trainer) -> None:
    """Write what makes a directory that of a fork which was stopped at its first step; `last.pt` comes last.

    Args:
        directory: held by this process.
        trainer: as `begin` has left it.
    """
    from dino_exp.training import checkpoint

    write_config(directory, trainer.cfg)
    write_text_atomically(directory.path / PARENT, trainer.parent or "")
    write_text_atomically(directory.metrics_file, "".join(map(to_json, trainer.logged)))
    directory.checkpoints.mkdir(exist_ok=True)
    checkpoint.save(directory.checkpoints / checkpoint.LAST, trainer.state())
