"""Folders that hold the parts of a data set, such as train and val, instead of classes."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dino_exp.data.file_sets import HELD_OUT
from dino_exp.data.image_scan import Folder, Skipped, walk
from dino_exp.errors import UserError

TRAINING = ("train", "training", "trainval", "trn")
HELD_OUT_WORDS = (*HELD_OUT, "testing", "evaluation", "eval", "holdout")
FOR_HELD_OUT = ("data.val_root", "data.probe.val")
FILLERS = frozenset({"set", "split", "images", "image", "imgs", "img", "data", "dataset"})
"""Words that names of parts also have: train_images, test-set."""


def check_level(key: str, root: Path, folder: Folder) -> None:
    """Raise UserError if a folder below `root` has the parts of a data set in it, and propose the right one.

    These are folders named as training and as held out that both hold images, or held-out folders with the
    classes of their neighbors; at least half of the folders with images must be named as parts, because a
    set may have classes named train and test.
    """
    held_out = [name for name in folder.folders if _part(name) in HELD_OUT_WORDS]
    if not held_out:
        return
    here = root / os.fsdecode(folder.prefix)
    training = [name for name in folder.folders if _part(name) in TRAINING and _has_images(here, name)]
    held_out = sorted((name for name in held_out if _has_images(here, name)), key=_order)
    if training and held_out:
        others = set(folder.folders) - set(training) - set(held_out)
        if sum(_has_images(here, name) for name in others) > len(training) + len(held_out):
            return
        chosen = here / os.fsdecode(held_out[0] if key in FOR_HELD_OUT else training[0])
        raise UserError(
            f"{key} = {root}: {'' if here == root else f'its folder {here} '}has the folders "
            f"{os.fsdecode(training[0])} and {os.fsdecode(held_out[0])}, the parts of a data set and not "
            f"its classes, so that training and held-out images would be mixed. Give {key}={chosen}, or a "
            "text file that lists the images."
        )
    for name in [] if folder.prefix else held_out:
        inside = next(walk(here / os.fsdecode(name), Skipped())).folders
        shared = sorted(set(inside) & set(folder.folders))
        if len(shared) > 1 and 2 * len(shared) >= len(inside):
            raise UserError(
                f"{key} = {root}: {here / os.fsdecode(name)} has the classes of the folders beside it "
                f"({os.fsdecode(shared[0])}, ...), so it seems to hold held-out images. Move it out of "
                f"{here}, or give a text file that lists the images."
            )


def _part(name: bytes) -> str | None:
    """Return the word that makes a name the name of a part of a data set, if it is one."""
    words = re.findall("[a-z]+", os.fsdecode(name).lower())
    told = [word.removesuffix("set") for word in words if word not in FILLERS]
    return told[0] if len(told) == 1 else None


def _order(name: bytes) -> int:
    return HELD_OUT_WORDS.index(str(_part(name)))


def _has_images(folder: Path, name: bytes) -> bool:
    return any(each.images for each in walk(folder / os.fsdecode(name), Skipped()))
