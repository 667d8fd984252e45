"""Pictures in files: class folders, one flat folder, or a text file that lists them."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dino_exp.data.source import PICTURE_SUFFIXES, Splits, read_image
from dino_exp.errors import UserError

log = logging.getLogger(__name__)

LAYOUTS = "class folders (root/<class>/**/*.jpg), a folder of pictures, or a text file with one path per line"


def load(
    *,
    name: str,
    root: str | None,
    val_root: str | None,
    channels: int,
    mean: list[float],
    std: list[float],
    max_corrupt: float,
) -> Splits:
    """The pictures below `root`, and those below `val_root` as the held-out ones.

    root: class folders (pictures at any depth below each), or a flat folder of pictures without labels, or
    a text file with one path per line, relative to the file's folder, and optionally a tab and the label.
    A single class folder counts as no labels: k-NN on one class would always be right.
    val_root: one of the same, with the classes of `root`; "auto" takes `val` or `test` beside a root named
    `train` (`val.txt` or `test.txt` beside `train.txt`); None holds nothing out.
    Files are not opened here, apart from the list; an unreadable one is found out when it is read.
    name, mean, std and max_corrupt concern the loader.
    """
    if root is None:
        raise UserError(f"data.root is null: give the place of the pictures: {LAYOUTS}.")
    train_path = _existing("data.root", root)
    train = _source("data.root", train_path, channels)
    val_path = (
        _beside(train_path) if val_root == "auto" else val_root and _existing("data.val_root", val_root)
    )
    if not val_path:
        return Splits(train, None)
    if val_path.samefile(train_path):
        raise UserError(
            f"data.val_root = {val_root}: these are the training pictures themselves; give held-out ones, "
            "or null for none."
        )
    test = _source("data.val_root", val_path, channels)
    _use_classes_of(train, test, f"data.val_root = {val_root}")
    return Splits(train, test)


class FolderSource:
    """Files below one folder, with or without labels.

    The paths lie in one buffer, because ten million Python strings would take a gigabyte in each worker.
    """

    has_masks = False

    def __init__(self, place: Path, base: Path, channels: int) -> None:
        self.place = place  # what data.root said
        self.classes: list[str] | None = None
        self._base = os.fsencode(base)
        self._channels = channels
        # Tensors, because DataLoader passes them to workers through shared memory.
        self._characters = torch.empty(0, dtype=torch.uint8)
        self._ends = torch.zeros(1, dtype=torch.int64)  # path i is characters[ends[i] : ends[i + 1]]
        self._labels: torch.Tensor | None = None

    @property
    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.numpy()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def read(self, index: int) -> torch.Tensor:
        return read_image(self.name(index), self._channels)

    def name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        path = self._characters[self._ends[index] : self._ends[index + 1]].numpy().tobytes()
        return os.fsdecode(os.path.join(self._base, path))  # noqa: PTH118 (bytes, and absolute paths stay)

    def mask(self, index: int) -> torch.Tensor:
        raise ValueError("picture files have no masks")

    def fill(self, paths: bytearray, ends: array[int], labels: array[int], classes: list[str] | None) -> None:
        """Take the paths (relative to the base folder, or absolute) that a scan found."""
        if not paths:  # np.frombuffer wants a byte
            return
        self._characters = torch.from_numpy(np.frombuffer(paths, dtype=np.uint8))
        self._ends = torch.from_numpy(np.frombuffer(ends, dtype=np.int64))
        if classes is not None and len(classes) > 1:
            self.classes = classes
            self._labels = torch.from_numpy(np.frombuffer(labels, dtype=np.int64))

    def relabel(self, classes: list[str] | None, number: list[int]) -> None:
        """Give label i the number number[i] of other classes, or drop all labels (classes = None)."""
        self.classes = classes
        if classes is None or self._labels is None:
            self._labels = None
        else:
            self._labels = torch.tensor(number, dtype=torch.int64)[self._labels]


def _existing(key: str, value: str) -> Path:
    path = Path(os.path.abspath(Path(value).expanduser()))  # noqa: PTH100 (keeps links, whose names matter)
    if not path.exists():
        parent = path.parent
        while not parent.exists():
            parent = parent.parent
        raise UserError(
            f"{key} = {value}: there is no such folder or file ({parent} exists). Give {LAYOUTS}."
        )
    return path


def _beside(train: Path) -> Path | None:
    if train.stem != "train":
        return None
    for name in ("val", "test"):
        candidate = train.with_name(name + train.suffix)
        if candidate.exists():
            log.info("held-out pictures: %s", candidate)
            return candidate
    return None


def _source(key: str, path: Path, channels: int) -> FolderSource:
    try:
        source = _list_file(key, path, channels) if path.is_file() else _folder(key, path, channels)
    except OSError as error:
        raise UserError(f"{key} = {path}: cannot be read: {error}.") from error
    if not len(source):
        endings = " ".join(sorted(PICTURE_SUFFIXES))
        raise UserError(f"{key} = {path}: no pictures there. Give {LAYOUTS}; file names end in {endings}.")
    return source


def _folder(key: str, root: Path, channels: int) -> FolderSource:
    pictures, folders = _entries(str(root))
    paths, ends, labels, classes = bytearray(), array("q", [0]), array("q"), [Path(f).name for f in folders]
    skip = len(os.fsencode(root)) + (0 if root.name == "" else 1)
    for label, folder in enumerate(folders):
        before = len(labels)
        for picture in _below(folder, (os.path.realpath(root),)):
            paths += os.fsencode(picture)[skip:]
            ends.append(len(paths))
            labels.append(label)
        if len(labels) == before:
            log.warning("%s: class folder %s has no pictures", key, folder)
    source = FolderSource(root, root, channels)
    if not labels:
        for picture in pictures:
            paths += os.fsencode(picture)[skip:]
            ends.append(len(paths))
        source.fill(paths, ends, labels, None)
    elif pictures:
        raise UserError(
            f"{key} = {root}: holds pictures ({Path(pictures[0]).name}, {len(pictures):,} in all) as well as "
            f"folders of pictures ({classes[0]}, ...), so it is neither flat nor class folders. Move one "
            "kind away, or list the pictures in a text file and give that."
        )
    else:
        if len(classes) == 1:
            log.info("%s: one class folder, so the pictures have no labels", key)
        source.fill(paths, ends, labels, classes)
    return source


def _below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Paths of all pictures below a folder, in an order that depends on the names alone."""
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder above
        return
    pictures, folders = _entries(folder)
    yield from pictures
    for inner in folders:
        yield from _below(inner, (*above, real))


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """Sorted paths of the pictures and of the folders in a folder; hidden ones are passed over."""
    pictures, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.splitext(entry.name)[1].lower() in PICTURE_SUFFIXES:  # noqa: PTH122 (10^7 times)
                pictures.append(entry.path)
            elif entry.is_dir():
                folders.append(entry.path)
    return sorted(pictures), sorted(folders)


def _list_file(key: str, path: Path, channels: int) -> FolderSource:
    paths, ends, labels = bytearray(), array("q", [0]), array("q")
    numbers: dict[bytes, int] = {}
    with path.open("rb") as lines:
        if b"\0" in lines.read(4096):
            raise UserError(f"{key} = {path}: not a text file. Give {LAYOUTS}.")
        lines.seek(0)
        for number, line in enumerate(lines, start=1):
            picture, tab, label = line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").partition(b"\t")
            if not picture.strip():
                continue
            if len(ends) == 1:
                _check_first(key, path, number, picture)
            if bool(tab) != bool(labels) and len(ends) > 1:
                raise UserError(
                    f"{key} = {path}, line {number}: {'a' if tab else 'no'} label (second column, after a "
                    f"tab), and the lines before have {'none' if tab else 'one'}. Label all pictures or none."
                )
            if tab:
                labels.append(numbers.setdefault(label.strip(), len(numbers)))
            paths += picture
            ends.append(len(paths))
    source = FolderSource(path, path.parent, channels)
    found = [os.fsdecode(label) for label in numbers]
    source.fill(paths, ends, labels, found or None)
    if source.classes is not None:
        numeric = all(label.isdecimal() for label in found)
        classes = sorted(found, key=int) if numeric else sorted(found)
        position = {label: i for i, label in enumerate(classes)}
        source.relabel(classes, [position[label] for label in found])
    return source


def _check_first(key: str, path: Path, number: int, picture: bytes) -> None:
    first = path.parent / os.fsdecode(picture)
    if not first.exists():
        raise UserError(
            f"{key} = {path}, line {number}: there is no file {first}. Each line is a path relative to "
            f"{path.parent}, or an absolute one, optionally followed by a tab and a label."
        )


def _use_classes_of(train: FolderSource, test: FolderSource, where: str) -> None:
    """Number the labels of the held-out pictures as the training pictures' labels are numbered."""
    if train.classes is None:
        test.relabel(None, [])
        return
    if test.classes is None or test.labels is None:
        raise UserError(
            f"{where} ({test.place}): these pictures have fewer than two classes, and those of data.root "
            f"({train.place}) have {len(train.classes):,}. Sort them into the same class folders, or set "
            "data.val_root=null."
        )
    position = {name: number for number, name in enumerate(train.classes)}
    present = {test.classes[label] for label in np.unique(test.labels)}
    unknown = sorted(present - position.keys())
    if unknown:
        raise UserError(
            f"{where} ({test.place}): class {unknown[0]!r} ({len(unknown):,} such) is not among the "
            f"{len(train.classes):,} classes of data.root ({train.place}). Make the class names agree, or "
            "set data.val_root=null."
        )
    test.relabel(train.classes, [position.get(name, -1) for name in test.classes])
