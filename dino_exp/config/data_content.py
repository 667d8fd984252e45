"""The content of the images that a command line's runs are trained on: read once per data set and process.

A composed configuration has it as `data_content`, by which a run is named. It is read here, for command
lines that train, and only looked up while a configuration is composed: composing stays a matter of
milliseconds for `--help`, reports and the check of a sweep.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dino_exp.config import relations
from dino_exp.config.data_schema import OthersDataConfig, StoredConfig
from dino_exp.config.identity import (
    IMAGES,
    PLACES,
    WITHOUT_EFFECT,
    absolute,
    is_others,
    run_id,
    trained_on,
)
from dino_exp.config.messages import show
from dino_exp.config.schema import schema_of
from dino_exp.config.sweep_runs import Findings, Run
from dino_exp.config.targets import images_of
from dino_exp.errors import UserError, refusing

if TYPE_CHECKING:  # importing torch takes seconds, which refusals and --help need not wait for
    from dino_exp.data.content import Content
    from dino_exp.data.source import Splits

HAVE_CONTENT = (StoredConfig, OthersDataConfig)
"""Sets whose images are not described by their configuration."""
_known: dict[str, str | None] = {}
"""Keys of contents, by place."""
_looked_at: set[str] = set()
"""Places, with how images were decoded when some were looked at."""
_last: dict[str, Any] = {}
"""What was read last: its `place` and `contents`; and the `splits` of a `node`, which the first run takes."""


def identify(runs: Sequence[Run], here: bool) -> tuple[list[Run], list[str], list[str]]:
    """Read what the runs of a command line are trained on; return them with their ids, problems and notes.

    Args:
        here: they are trained on this machine; elsewhere images may be that this machine does not have.
    """
    problems, notes = Findings(), Findings()
    for run in runs:
        absent = list(relations.folder_problems(run.cfg))
        if absent and not here:
            why = "The runs are named by this path; each job records the images that it finds there."
            notes.add([f"{note} {why}" for note in absent], run.overrides)
            continue
        try:
            with refusing("choose other images, or ask their owner"):
                notes.add(read(run.cfg), run.overrides)
        except UserError as error:
            problems.add([str(error)], run.overrides)
    return [replace(run, run_id=run_id(run.cfg)) for run in runs], problems.lines(), notes.lines()


def forget() -> None:
    """Forget what was read, which may have changed since: for the next command line of a process."""
    _known.clear()
    _looked_at.clear()
    _last.clear()


def known(cfg: Any) -> str | None:
    """Return the key of a run's images if this process has read them: the value of `data_content`."""
    try:
        return _known.get(_place(cfg)) if _known else None
    except OmegaConfBaseException:  # a configuration that is not complete yet
        return None


def read(cfg: Any) -> list[str]:
    """Read the content of a run's images, unless they are generated or this process has read it.

    Returns:
        What is odd about them, in words.

    Raises:
        UserError: they cannot be used.
    """
    place, decoding = _place(cfg), _decoding(cfg)
    if not issubclass(schema_of(cfg.data), HAVE_CONTENT) or (place in _known and decoding in _looked_at):
        return []
    from dino_exp.data.content import contents_of, key_of, overlaps, refuse_unreadable

    splits = images_of(cfg.data, packed=False)  # pixels are packed where the run is trained
    _looked_at.add(decoding)
    if place in _known:
        return []
    contents = contents_of(splits)
    if issubclass(schema_of(cfg.data), OthersDataConfig):
        refuse_unreadable(splits.train, contents, cfg.data.max_corrupt)
    _known[place] = key_of(contents)
    _last.clear()
    _last.update(place=place, contents=contents)
    if not cfg.data.get("packed"):
        _last.update(node=_node(cfg), splits=splits)
    return [f"data.root = {cfg.data.root}: {both}." for both in overlaps(contents)]


def lack_labels(cfg: Any) -> bool:
    """Return whether a run's images were read, and those that features are judged by have no labels."""
    if not cfg.get("data_content"):
        return False
    from dino_exp.data.content import judged

    found = contents(cfg)
    return any(found[part].labels is None if part in found else True for part in judged(found))


def contents(cfg: Any) -> dict[str, Content]:
    """Return the images of a run as they were read last, or as they are now."""
    if _last.get("place") != _place(cfg):
        _known.pop(_place(cfg), None)
        read(cfg)
    return _last["contents"]


def load(cfg: Any) -> tuple[Splits, dict[str, Content]]:
    """Return the images of a run and what they are now, which is nothing for generated ones.

    Raises:
        UserError: they cannot be used.
    """
    from dino_exp.data.content import contents_of

    if _last.get("node") == _node(cfg):
        del _last["node"]
        return _last.pop("splits"), _last["contents"]
    splits = images_of(cfg.data)
    return splits, contents_of(splits)


def settled(cfg: Any) -> Any:
    """Return a copy of a configuration to store: with absolute paths of its images."""
    cfg = copy.deepcopy(cfg)
    for key in PLACES if issubclass(schema_of(cfg.data), HAVE_CONTENT) else ():
        if (place := OmegaConf.select(cfg, key)) is not None:
            OmegaConf.update(cfg, key, absolute(place))
    return cfg


def problems(cfg: DictConfig) -> list[str]:
    """Return what is wrong with the key of a composed configuration, which nobody sets."""
    if OmegaConf.is_interpolation(cfg, "data_content") and cfg.data_content == known(cfg):
        return []
    return [f"data_content = {show(cfg.data_content)}: do not set it; it is computed from the images."]


def _place(cfg: Any) -> str:
    """Return what says which images a run has, and not what it makes of them."""
    values = trained_on(cfg, by_place=True)
    made_of_them = WITHOUT_EFFECT if is_others(values) else IMAGES | WITHOUT_EFFECT
    return json.dumps({key: values[key] for key in values.keys() - made_of_them}, sort_keys=True)


def _decoding(cfg: Any) -> str:
    return json.dumps(
        [_place(cfg), *(cfg.data.get(key) for key in ("channels", "bands", "range"))], default=list
    )


def _node(cfg: Any) -> str:
    return json.dumps(trained_on(cfg, by_place=True), sort_keys=True)
