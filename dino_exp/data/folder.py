"""Images in files: class folders, one flat folder, or a text file that lists them."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Sequence
from itertools import accumulate, chain, islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dino_exp.data.content import Content
from dino_exp.data.decoding import Decoding
from dino_exp.data.digests import digests, file_digest, file_sizes
from dino_exp.data.file_sets import existing_path, held_out_siblings
from dino_exp.data.image_formats import known_endings
from dino_exp.data.image_lists import read_list
from dino_exp.data.image_scan import QUIET, Skipped, walk
from dino_exp.data.labeled import LabeledSource, NameTable, short_digest
from dino_exp.data.source import Shrink, Splits, read_encoded, read_image
from dino_exp.data.split_folders import check_level
from dino_exp.data.storage import spread
from dino_exp.data.stored_kinds import IMAGE_FILES, other_kind
from dino_exp.errors import UserError, in_words

log = logging.getLogger(__name__)

LAYOUTS = "class folders (root/<class>/**/*.jpg), a folder of images, or a text file with one path per line"


def load(
    *,
    root: str | None,
    val_root: str | None,
    channels: int,
    backend: str,
    bands: Sequence[int] | None = None,
    range: Sequence[object] | None = None,
) -> Splits:
    """Find the training images below `root` and the held-out images below `val_root`.

    An unreadable image is noticed when it is read.

    Args:
        root: class folders (images at any depth below each), or a flat folder of images without labels, or
            a list (see `read_list`). A single class folder counts as no labels: k-NN on one class would
            always be right.
        val_root: one of the same, with the classes of `root` and none of its images; "auto" is the first of
            `val`, ..., `test` next to a root named `train` (`val.txt` next to `train.txt`) that has labels
            where `root` has them; None is no held-out images.
        channels, backend, bands, range: see `Decoding`.
    """
    if root is None:
        raise UserError(f"data.root is null: give the path of the images: {LAYOUTS}.")
    decoding = Decoding.of(channels, backend, bands, range)
    train = find("data.root", root, decoding)
    test = None
    if val_root == "auto":
        test = _beside(train, decoding)
    elif val_root:
        test = find("data.val_root", val_root, decoding)
        _check_apart(val_root, test, train)
    return Splits(train.source, None if test is None else test.source)


class FolderSource(LabeledSource):
    """Image files with or without labels.

    base: the folder that relative paths begin at.
    """

    def __init__(self, path: Path, base: Path, decoding: Decoding) -> None:
        super().__init__(path)
        self._base = str(base)
        self.decoding = decoding
        self._paths = NameTable(b"", array("q", [0]))  # relative to the base folder, or absolute

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        return read_image(self.name(index), self.decoding, shrink=shrink, others=self._some_paths)

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image as stored. Raises CorruptImageError."""
        return read_encoded(self.name(index), self._some_paths)

    def name(self, index: int) -> str:
        return os.path.join(self._base, self._paths[index])  # noqa: PTH118 (10^7 times)

    def _some_paths(self) -> list[str]:
        return [self.name(index) for index in spread(len(self))]

    def content(self) -> Content:
        """Return the images that are there now."""
        return Content(self._paths, self._digests(every=False), self.labels)

    def fingerprint(self) -> str:
        """Return a digest of every image and of how it is decoded."""
        return short_digest(self._digests(every=True), *self.decoding.key)

    def _digests(self, every: bool) -> np.ndarray:
        sizes, key = file_sizes(self._base, self._paths)
        return digests(key, sizes, self.digest, self._some_paths, every)

    def digest(self, index: int, whole: int) -> int:
        """Return the digest of an image, as in `digests`. Raises OSError."""
        return file_digest(self.name(index), whole)

    def fill(self, paths: bytearray, ends: array[int], labels: array[int], classes: list[str] | None) -> None:
        """Set the paths (relative to the base folder, or absolute) and labels that were found."""
        self._paths = NameTable(paths, ends)
        if classes is not None:
            self.label(labels, classes)


class Found(NamedTuple):
    """Images, and a hash of each one's path without links in its folders."""

    source: FolderSource
    places: array[int]


def find(key: str, value: str, decoding: Decoding) -> Found:
    """Return the images of a folder or list that a key names; raises UserError if there are none."""
    path = existing_path(key, value, LAYOUTS)
    try:
        if path.is_dir():
            return _folder(key, path, decoding)
        if remedy := other_kind(path, IMAGE_FILES):
            raise UserError(f"{key} = {path}: no image and no list of images.{remedy}")
        listed = read_list(key, path, LAYOUTS)
    except OSError as error:
        raise UserError(f"{key} = {path}: cannot be read: {in_words(error)}.") from error
    source = FolderSource(path, path.parent, decoding)
    if not listed.places:
        raise _no_images(key, path, "")
    source.fill(listed.paths, listed.ends, listed.labels, listed.classes or None)
    return Found(source, listed.places)


def _beside(train: Found, decoding: Decoding) -> Found | None:
    """Return the held-out images next to the training images that can be used, and log which."""
    for path in held_out_siblings(train.source.path):
        try:
            test = find("data.val_root", str(path), decoding)
            _check_apart(str(path), test, train)
        except UserError as error:
            log.warning("data.val_root = auto: not used: %s", error)
            continue
        if train.source.classes is not None and test.source.classes is None:
            log.warning("data.val_root = auto: %s has no labels and is not used.", path)
            continue
        log.info("Held-out images: %s", path)
        return test
    return None


def _check_apart(val_root: str, test: Found, train: Found) -> None:
    """Raise UserError if held-out images are among the training images."""
    shared = np.flatnonzero(np.isin(np.asarray(test.places), np.asarray(train.places)))
    if not len(shared):
        return
    path, count = train.source.path, len(test.places)
    if len(shared) == count == len(train.places):
        what = "these are the training images; give held-out images"
    else:
        what = (
            f"{len(shared):,} of these {count:,} images are also training images, in data.root = {path} "
            f"({test.source.name(int(shared[0]))}, ...); give images that are not"
        )
    raise UserError(f"data.val_root = {val_root}: {what}, or null for none.")


def _folder(key: str, root: Path, decoding: Decoding) -> Found:
    paths, ends, labels, places = bytearray(), array("q", [0]), array("q"), array("q")
    skipped = Skipped()
    folders = walk(root, skipped)
    top = next(folders)
    numbers = {name: number for number, name in enumerate(top.folders)}
    classes = [os.fsdecode(name) for name in top.folders]
    for folder in chain((top,), folders):
        check_level(key, root, folder)
        if not folder.images:
            continue
        if top.images and folder.prefix:
            raise UserError(
                f"{key} = {root}: has images ({os.fsdecode(top.images[0])}, {len(top.images):,} in all) as "
                f"well as folders of images ({os.fsdecode(folder.prefix)}, ...). Move one of the two away, "
                "or list the images in a text file and give that."
            )
        names = [folder.prefix + name for name in folder.images]
        paths += b"".join(names)
        ends.extend(islice(accumulate(map(len, names), initial=ends[-1]), 1, None))
        places.extend(hash(folder.real + b"/" + name) for name in folder.images)
        if folder.prefix:
            labels.extend(repeat(numbers[folder.prefix.partition(b"/")[0]], len(names)))
    if not places:
        raise _no_images(key, root, skipped.words(QUIET))
    skipped.say(key, root)
    source = FolderSource(root, root, decoding)
    source.fill(paths, ends, labels, _labeled(key, root, labels, classes))
    return Found(source, places)


def _labeled(key: str, root: Path, labels: array[int], classes: list[str]) -> list[str] | None:
    """Return the classes; None for a flat folder and where only one class has images."""
    if not labels:
        return None
    filled = np.bincount(np.asarray(labels), minlength=len(classes)) > 0
    if filled.sum() > 1:
        for number in np.flatnonzero(~filled):
            log.warning("%s: class folder %s has no images.", key, root / classes[number])
        return classes
    only = root / classes[labels[0]]
    inside = next(walk(only, Skipped()))
    hint = ""
    if not inside.images and len(inside.folders) > 1:
        some = ", ".join(map(os.fsdecode, inside.folders[:2]))
        hint = f" {key}={only} has the class folders {some}, ..."
    log.warning("%s: only one class folder (%s), so the images have no labels.%s", key, only.name, hint)
    return None


def _no_images(key: str, path: Path, skipped: str) -> UserError:
    found = f", but {skipped}" if skipped else ""
    remedy = other_kind(path, IMAGE_FILES) or f" Give {LAYOUTS}; file names end in {known_endings()}."
    return UserError(f"{key} = {path}: no images there{found}.{remedy}")
