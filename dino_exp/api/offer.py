"""What Python code gives to a run, offered to it under the digest that its configuration has."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from dino_exp.backbone import given
from dino_exp.config.compose import check
from dino_exp.config.fork import UNREAD
from dino_exp.config.hydra_loader import override_text
from dino_exp.data import adapted
from dino_exp.data.content import contents_of, key_of, overlaps, refuse_unreadable
from dino_exp.data.decoding import Decoding
from dino_exp.data.kinds import kind_of
from dino_exp.data.labeled import short_digest
from dino_exp.data.source import Splits
from dino_exp.errors import UserError, warn
from dino_exp.parallel.processes import Processes


class Offer(NamedTuple):
    """What is offered, and how to ask for it."""

    words: list[str]
    """The overrides, with those that choose what is given."""
    network: tuple[str, given.Given] | None
    """The given network, with its digest."""


@contextmanager
def offered(
    words: Sequence[str], flags: Sequence[str], data: Any, backbone: Any, probe: Any
) -> Iterator[Offer]:
    """Offer data and network to the runs of a command line, within the context.

    Args:
        words: overrides.
        flags: what comes before them, such as -m.
        data, backbone, probe: as in `dino_exp.train`; None is what the words say.

    Raises UserError, one line per problem, if the words are wrong, or what is given cannot be used.
    """
    words, network = list(words), None
    if Processes.from_environment().count > 1:
        raise UserError(
            "dino_exp.train works in one process, and here are several (WORLD_SIZE). Register data and "
            "network in a module, and use the command line with plugins=[...]."
        )
    for group, thing in (("data", data), ("backbone", backbone)):
        typed = next((word for word in words if word.startswith(f"{group}=")), None)
        if thing is not None and typed:
            raise UserError(f"{typed}: {group} is given as an argument too; keep one.")
    with ExitStack() as stack:
        if backbone is not None:
            network = (given.digest_of(backbone), backbone)
            stack.enter_context(given.offered(*network))
            words += ["backbone=given", f"backbone.name={given.name_of(backbone)}"]
            words += [override_text("backbone.content", network[0])]
        if data is None or _is_place(data) or _are_places(data):
            words += _probe_in_files(probe)
        if _is_place(data):
            words += _stored(data)
        elif _are_places(data):
            train, test = map(os.fspath, data)
            words += [*_stored(train), override_text("data.val_root", test)]
        elif data is not None:
            cfg = _composed([*flags, *words, "data=given", f"data.content='{UNREAD}'"])
            splits = adapted.as_splits(data, cfg.channels, Decoding.of_config(cfg))
            if probe is not None:
                splits.probe = _probe(probe, cfg.channels, Decoding.of_config(cfg))
            content = _content(splits, cfg.max_corrupt)
            stack.enter_context(adapted.offered(content, cfg.channels, splits))
            words += ["data=given", override_text("data.content", content)]
        yield Offer(words, network)


def _is_place(data: Any) -> bool:
    return isinstance(data, (str, os.PathLike))


def _are_places(data: Any) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(map(_is_place, data))


def _probe(probe: Any, channels: int, decoding: Decoding) -> Splits:
    splits = adapted.as_splits(probe, channels, decoding)
    for part in (splits.train, splits.test):
        if part is None or part.labels is None:
            raise UserError("probe: give a pair (train, val) of labeled images, or None.")
    return splits


def _probe_in_files(probe: Any) -> list[str]:
    if probe is None:
        return []
    if not _are_places(probe):
        raise UserError("probe: give two paths, as the training images are in files too.")
    train, val = map(os.fspath, probe)
    return [override_text("data.probe.train", train), override_text("data.probe.val", val)]


def _stored(path: str | os.PathLike[str]) -> list[str]:
    place = os.fspath(path)
    return [f"data={kind_of(place)}", override_text("data.root", place)]


def _composed(argv: Sequence[str]) -> Any:
    """Return the group `data` of all runs of a command line, which agree in what is made of the images."""
    checked = check(argv)
    if checked.errors:
        raise UserError("\n".join(checked.errors))
    first, *others = (run.cfg.data for run in checked.runs)
    for other in others:
        if other.channels != first.channels:
            raise UserError("data.channels: cannot be swept over images that are given from Python.")
    return first


def _content(splits: Splits, max_corrupt: float) -> str:
    """Return a digest of all images and labels. Raises UserError if too many images cannot be read."""
    contents = contents_of(splits)
    for both in overlaps(contents):
        warn([f"data: {both}."])
    refuse_unreadable(splits.train, contents, max_corrupt)
    judged = splits.evaluated
    parts = [part for part in (splits.train, splits.test, judged.train, judged.test) if part is not None]
    unknown = {part.fingerprint(): None for part in parts if not hasattr(part, "content")}
    return short_digest(key_of(contents), *unknown)
