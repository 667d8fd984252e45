"""Which directory has a run already, and whether its images are still those that it is trained on."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_exp.config import data_content
from dino_exp.config.identity import run_ids
from dino_exp.config.stored import read_if_possible
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.runs.run_files import ENDED_WELL, set_aside

if TYPE_CHECKING:  # importing torch takes seconds, which commands for sweeps need not wait for
    from dino_exp.data.content import Content

log = logging.getLogger(__name__)


# ---- the directory of a run --------------------------------------------------------------------------------


def directory_name(folder: Path, cfg: Any) -> str:
    """Return the name of a run's directory in a folder: of those that it may have the first that is there.

    A run that was submitted without its images has the name of their place, or, if it is submitted again
    where they are missing, still that of their content; one of an earlier version has its former name.
    """
    ids = run_ids(cfg)
    for name in ids:
        directory = RunDirectory(folder / name)
        if os.path.lexists(directory.config_file) and (name == ids[0] or _may_be(directory, cfg)):
            return name
    others = [] if cfg.get("data_content") else list(_over_the_same_place(folder, cfg))
    return others[0].path.name if len(others) == 1 else ids[0]


def has_ended(state: object, cfg: Any) -> bool:
    """Return whether a run in this state has ended; a collapse is an end only where it is to be one."""
    return state == "finished" or (state == "collapsed" and cfg.trainer.on_collapse == "stop")


def refuse_changed_images(folder: Path, cfg: Any, wanted: Collection[str] = ()) -> str | None:
    """Raise UserError if a run that would begin is an unfinished one of the folder, over changed images.

    Its name differs, so it would silently begin at the first step.

    Args:
        wanted: ids of the command's runs, over the present images; a large sweep's need not be read.

    Returns:
        A note about a finished run over other images of the same place, if there is one.
    """
    if cfg.get("resume") == "never" or not cfg.get("data_content"):
        return None
    if os.path.lexists(RunDirectory(folder / directory_name(folder, cfg)).config_file):
        return None
    from dino_exp.training.checkpoint import newest

    note = None
    for directory in _over_the_same_place(folder, cfg, wanted):
        if directory.read_status().get("state") in ENDED_WELL:
            note = f"{directory.path}: finished with other images of the same path; this is a new run."
        elif newest(directory.checkpoints):
            raise UserError(changed(directory, recorded(directory), data_content.contents(cfg)))
    return note


def _over_the_same_place(folder: Path, cfg: Any, known: Collection[str] = ()) -> Iterator[RunDirectory]:
    """Yield the runs in a folder that differ in nothing but the content of their images."""
    ids = run_ids(cfg)
    readable, by_place = ids[0][:-8], ids[1 if cfg.get("data_content") else 0]
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return
    own = {ids[0], *known}
    for name in names:  # of a sweep of a thousand runs few have the same readable part
        if name.startswith(readable) and len(name) == len(ids[0]) and name not in own:
            directory = RunDirectory(folder / name)
            if _place_and_content(directory.config_file)[0] == by_place:
                yield directory


def _may_be(directory: RunDirectory, cfg: Any) -> bool:
    """Return whether a run that is named by its images' place is over the content of `cfg`, or may be."""
    from dino_exp.data.content import key_of

    wanted = cfg.get("data_content")
    there = _place_and_content(directory.config_file)[1] or key_of(recorded(directory))
    return not (wanted and there) or wanted == there


def _place_and_content(config: Path) -> tuple[str, str | None]:
    try:
        about = config.stat()
    except OSError:
        return "", None
    return _read_place_and_content(config.absolute(), about.st_size, about.st_mtime_ns)


@cache
def _read_place_and_content(config: Path, size: int, changed: int) -> tuple[str, str | None]:
    """Return a stored run's id by place and its content; the former is empty if it has none."""
    stored = read_if_possible(config, [])
    try:
        key = stored.get("data_content")
        return run_ids(stored | {"data_content": None})[0], key if isinstance(key, str) else None
    except (AttributeError, KeyError, TypeError, ValueError):  # of another version, or incomplete
        return "", None


# ---- the images of a run -----------------------------------------------------------------------------------


def recorded(directory: RunDirectory) -> dict[str, Content]:
    """Return the images that a run has recorded; none if the file is missing or damaged."""
    from dino_exp.data.content import read

    try:
        return read(directory.data_file)
    except UserError:
        return {}


def refuse_changed(directory: RunDirectory, cfg: Any, contents: Mapping[str, Content], begun: bool) -> None:
    """Raise UserError if the images of a run are not those that it was, or is to be, trained on."""
    from dino_exp.data.content import key_of

    now, before = key_of(contents), recorded(directory)
    wanted = {cfg.get("data_content"), key_of(before) if begun else None} - {None}
    if now and wanted - {now}:
        raise UserError(changed(directory, before, contents))


def refuse_other_length(directory: RunDirectory, steps: int) -> None:
    """Raise UserError if a run without a record of its images had another number of steps before it."""
    before = directory.read_status().get("total_steps")
    if before not in (None, steps) and not directory.data_file.exists():
        raise UserError(
            f"{directory.path}: this run had {before:,} steps, and with the images that are there now it has "
            f"{steps:,}. Put them back to resume it; or train anew with the images as they are: resume=never."
        )


def changed(directory: RunDirectory, before: Mapping[str, Content], now: Mapping[str, Content]) -> str:
    """Return in words how the images of a run have changed, and what one can do."""
    from dino_exp.data.content import differences
    from dino_exp.training.checkpoint import newest

    what = differences(before, now) if before else "they are others"
    weights = newest(directory.checkpoints)
    if weights is None:
        return (
            f"{directory.path}: the images have changed since this run was submitted: {what}. Put them back, "
            "or repeat the command that submitted it, to train with the images as they are."
        )
    return (
        f"{directory.path}: the images have changed since this run began: {what}. Put them back to resume "
        "it; or train anew with the images as they are: resume=never; or begin with its weights: "
        f"init_from={directory.checkpoints / weights}."
    )


def record(directory: RunDirectory, contents: Mapping[str, Content]) -> None:
    """Write what a run is trained on, if it is not yet there; a damaged file is kept beside it."""
    from dino_exp.data import content

    if not contents:
        return
    try:
        before = content.read(directory.data_file)
    except UserError as error:
        kept = set_aside(directory.data_file)
        log.warning("%s It is kept as %s and written anew.", error, kept.name)
        before = {}
    if content.key_of(before) != content.key_of(contents):
        content.write(directory.data_file, contents)
