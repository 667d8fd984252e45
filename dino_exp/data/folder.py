"""Images in files: class folders, one flat folder, or a text file that lists them."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dino_exp.data.content import Content
from dino_exp.data.digests import digests, file_digest, file_sizes
from dino_exp.data.file_sets import existing_path, held_out_sibling
from dino_exp.data.labeled import LabeledSource, NameTable, short_digest
from dino_exp.data.packed import stored_splits
from dino_exp.data.source import IMAGE_SUFFIXES, Shrink, Splits, read_image
from dino_exp.data.storage import spread
from dino_exp.errors import UserError, in_words
from dino_exp.regular_file import open_regular

log = logging.getLogger(__name__)

LAYOUTS = "class folders (root/<class>/**/*.jpg), a folder of images, or a text file with one path per line"


def load(
    *,
    root: str | None,
    val_root: str | None,
    channels: int,
    backend: str,
    packed: bool,
    packed_side: int | None,
) -> Splits:
    """Find the training images below `root` and the held-out images below `val_root`.

    Only a list is opened here; an unreadable image is noticed when it is read.

    Args:
        root: class folders (images at any depth below each), or a flat folder of images without labels, or
            a text file with one path per line, relative to the file's folder, and optionally a tab and the
            label. A single class folder counts as no labels: k-NN on one class would always be right.
        val_root: one of the same, with the classes of `root`; "auto" is `val` or `test` next to a root named
            `train` (`val.txt` or `test.txt` next to `train.txt`); None is no held-out images.
        channels, backend: see `decode_image`.
        packed, packed_side: see `stored_splits`.
    """
    if root is None:
        raise UserError(f"data.root is null: give the path of the images: {LAYOUTS}.")
    train_path = existing_path("data.root", root, LAYOUTS)
    train = _source("data.root", train_path, channels, backend)
    if val_root == "auto":
        val_path = held_out_sibling(train_path)
    else:
        val_path = existing_path("data.val_root", val_root, LAYOUTS) if val_root else None
    test = None
    if val_path:
        if val_path.samefile(train_path):
            raise UserError(
                f"data.val_root = {val_root}: these are the training images; give held-out images, or null "
                "for none."
            )
        test = _source("data.val_root", val_path, channels, backend)
    return stored_splits(train, test, val_root, packed, packed_side)


class FolderSource(LabeledSource):
    """Image files with or without labels.

    base: the folder that relative paths begin at.
    """

    def __init__(self, path: Path, base: Path, channels: int, backend: str) -> None:
        super().__init__(path)
        self._base = str(base)
        self._channels, self._backend = channels, backend
        self._paths = NameTable(b"", array("q", [0]))  # relative to the base folder, or absolute

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        return read_image(
            self.name(index), self._channels, backend=self._backend, shrink=shrink, others=self._some_paths
        )

    def name(self, index: int) -> str:
        return os.path.join(self._base, self._paths[index])  # noqa: PTH118 (10^7 times)

    def _some_paths(self) -> list[str]:
        return [self.name(index) for index in spread(len(self))]

    def content(self) -> Content:
        """Return the images that are there now."""
        return Content(self._paths, self._digests(every=False), self.labels)

    def fingerprint(self) -> str:
        """Return a digest of every image and of how it is decoded."""
        return short_digest(self._digests(every=True), self._channels, self._backend)

    def _digests(self, every: bool) -> np.ndarray:
        sizes, key = file_sizes(self._base, self._paths)
        return digests(key, sizes, self._digest, self._some_paths, every)

    def _digest(self, index: int, whole: int) -> int:
        return file_digest(self.name(index), whole)

    def fill(self, paths: bytearray, ends: array[int], labels: array[int], classes: list[str] | None) -> None:
        """Set the paths (relative to the base folder, or absolute) and labels that were found."""
        self._paths = NameTable(paths, ends)
        if classes is not None:
            self.label(labels, classes)


def _source(key: str, path: Path, channels: int, backend: str) -> FolderSource:
    try:
        source = (
            _list_file(key, path, channels, backend)
            if path.is_file()
            else _folder(key, path, channels, backend)
        )
    except OSError as error:
        raise UserError(f"{key} = {path}: cannot be read: {error}.") from error
    if not len(source):
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{key} = {path}: no images there. Give {LAYOUTS}; file names end in {endings}.")
    return source


def _folder(key: str, root: Path, channels: int, backend: str) -> FolderSource:
    images, folders = _entries(str(root))
    paths, ends, labels, classes = bytearray(), array("q", [0]), array("q"), [Path(f).name for f in folders]
    skip = len(os.fsencode(root)) + (0 if root.name == "" else 1)
    for label, folder in enumerate(folders):
        before = len(labels)
        for image in _below(folder, (os.path.realpath(root),)):
            paths += os.fsencode(image)[skip:]
            ends.append(len(paths))
            labels.append(label)
        if len(labels) == before:
            log.warning("%s: class folder %s has no images.", key, folder)
    source = FolderSource(root, root, channels, backend)
    if not labels:
        for image in images:
            paths += os.fsencode(image)[skip:]
            ends.append(len(paths))
        source.fill(paths, ends, labels, None)
    elif images:
        raise UserError(
            f"{key} = {root}: has images ({Path(images[0]).name}, {len(images):,} in all) as well as "
            f"folders of images ({classes[0]}, ...). Move one of the two away, or list the images in a text "
            "file and give that."
        )
    else:
        if len(classes) == 1:
            log.info("%s: only one class folder, so the images have no labels.", key)
        source.fill(paths, ends, labels, classes)
    return source


def _below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the paths of all images below a folder, in an order that depends on the names alone.

    above: real paths of the folders that it is in.
    """
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder above
        return
    images, folders = _entries(folder)
    yield from images
    for inner in folders:
        yield from _below(inner, (*above, real))


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """Return the sorted paths of the images and of the folders in a folder, without hidden ones."""
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 (10^7 times)
                images.append(entry.path)
            elif entry.is_dir():
                folders.append(entry.path)
    return sorted(images), sorted(folders)


def _list_file(key: str, path: Path, channels: int, backend: str) -> FolderSource:
    paths, ends, labels = bytearray(), array("q", [0]), array("q")
    numbers: dict[bytes, int] = {}
    try:
        file = open_regular(path)
    except OSError as error:
        raise UserError(f"{key} = {in_words(error)}. Give {LAYOUTS}.") from error
    with file as lines:
        if b"\0" in lines.read(4096):
            raise UserError(f"{key} = {path}: not a text file. Give {LAYOUTS}.")
        lines.seek(0)
        for number, line in enumerate(lines, start=1):
            image, tab, label = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").partition(b"\t")
            if not image.strip():
                continue
            if len(ends) == 1:
                _check_first(key, path, number, image)
            if bool(tab) != bool(labels) and len(ends) > 1:
                raise UserError(
                    f"{key} = {path}, line {number}: {'a' if tab else 'no'} label (after a tab), but the "
                    f"lines before have {'none' if tab else 'one'}. Label all images or none."
                )
            if tab:
                labels.append(numbers.setdefault(label.strip(), len(numbers)))
            paths += image
            ends.append(len(paths))
    source = FolderSource(path, path.parent, channels, backend)
    found = [os.fsdecode(label) for label in numbers]  # in the order of their first lines
    source.fill(paths, ends, labels, found or None)
    if source.classes is not None:
        numeric = all(label.isdecimal() for label in found)
        classes = sorted(found, key=int) if numeric else sorted(found)
        position = {label: i for i, label in enumerate(classes)}
        source.relabel(classes, [position[label] for label in found])
    return source


def _check_first(key: str, path: Path, number: int, image: bytes) -> None:
    first = path.parent / os.fsdecode(image)
    if not first.exists():
        raise UserError(
            f"{key} = {path}, line {number}: no such file: {first}. Each line is a path, relative to "
            f"{path.parent} or absolute, optionally followed by a tab and a label."
        )
