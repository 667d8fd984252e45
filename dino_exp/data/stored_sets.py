"""Sets that are stored in files, completed: parts that share their classes, the probe set, packed pixels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

from dino_exp.data.content import ImagesWithContent
from dino_exp.data.decoding import Decoding
from dino_exp.data.first_look import check_images, smallest
from dino_exp.data.kinds import open_images
from dino_exp.data.packed import PackedSource
from dino_exp.data.source import CorruptImageError, Splits
from dino_exp.data.storage import spread
from dino_exp.errors import UserError
from dino_exp.parallel import distributed


def complete(
    splits: Splits,
    val_root: str | None,
    probe: Mapping[str, str | None],
    decoding: Decoding,
    packed: bool,
    packed_side: int | None,
) -> Splits:
    """Return the parts that were found, with labels that are numbered alike, and with those of the probe set.

    Args:
        splits: training and held-out images with their own labels; changed in place.
        probe: `train` and `val`, as in `ProbeConfig`.
        packed: return each part as a `PackedSource`, those of the probe set too.
        packed_side: see `PackedSource`.

    Raises UserError where labels are missing or do not match, or the settings are not for such images.
    """
    train, test = cast(ImagesWithContent, splits.train), cast("ImagesWithContent | None", splits.test)
    for part in (train, test):
        if part is not None:
            check_images(part)
    with_probe(splits, probe, decoding)
    if test is not None:
        test.use_classes_of(train, f"data.val_root = {val_root}")
    return _packed(splits, packed_side, {}) if packed else splits


def with_probe(splits: Splits, probe: Mapping[str, str | None], decoding: Decoding) -> Splits:
    """Open the probe set that is asked for, and return the splits with it. Raises UserError as `complete`."""
    train, test = cast(ImagesWithContent, splits.train), cast("ImagesWithContent | None", splits.test)
    if probe.get("train") is not None or probe.get("val") is not None:
        splits.probe = _probe(train, copy.copy(test), probe.get("train"), probe.get("val"), decoding)
    return splits


def _probe(
    train: ImagesWithContent,
    test: ImagesWithContent | None,
    bank_path: str | None,
    queries_path: str | None,
    decoding: Decoding,
) -> Splits:
    """Return the probe set; where only one of its parts is given, the run's own images are the other."""
    bank, queries, where = train, test, "the held-out images"
    if bank_path is not None:
        bank = _opened("data.probe.train", bank_path, decoding)
    if queries_path is not None:
        queries, where = _opened("data.probe.val", queries_path, decoding), f"data.probe.val = {queries_path}"
    if queries is None:
        raise UserError(
            f"data.probe.train = {bank_path}: there are no held-out images that it could classify; give "
            "labeled images of the same classes as data.probe.val."
        )
    if bank.labels is None:
        named = "data.root" if bank_path is None else "data.probe.train"
        fix = "give labeled images of the same classes as" if bank_path is None else "give other images as"
        raise UserError(
            f"{where}: the images of {named} ({bank.path}) have no labels, or all the same, so that nothing "
            f"can be classified by them; {fix} data.probe.train."
        )
    of = "data.root" if bank_path is None else "data.probe.train"
    queries.use_classes_of(bank, where, of, "give other images as data.probe.val")
    return Splits(bank, queries)


def _opened(key: str, path: str, decoding: Decoding) -> ImagesWithContent:
    """Return images that are there and can be read; raises UserError where none of those looked at can."""
    found = open_images(key, path, decoding, held_out=key.endswith(".val"))
    check_images(found)
    reasons = []
    some = spread(len(found)) if distributed.is_main() else []
    for index in some:
        try:
            found.read(index, smallest)
        except CorruptImageError as error:
            reasons.append(str(error))
    if reasons and len(reasons) == len(some):
        raise UserError(
            f"{key} = {path}: none of {len(some)} images looked at can be read: {reasons[0]}. They are read "
            "with the channels of the training images."
        )
    return found


def _packed(splits: Splits, side: int | None, known: dict[int, PackedSource]) -> Splits:
    """Return the same parts from files of pixels, each written once."""

    def pack(source: ImagesWithContent) -> PackedSource:
        return known.setdefault(id(source), PackedSource(source, side))

    train, test = cast(ImagesWithContent, splits.train), cast("ImagesWithContent | None", splits.test)
    return Splits(
        pack(train),
        None if test is None else pack(test),
        None if splits.probe is None else _packed(splits.probe, side, known),
    )
