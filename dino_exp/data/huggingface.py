"""Hugging Face data sets on the disk: saved by `save_to_disk`, or as parquet files."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_exp.data import file_sets
from dino_exp.data.arrow_files import IMAGE, paths_of, ranges_of, reading, schema_of, unpacked, values_of
from dino_exp.data.content import Content
from dino_exp.data.decoding import Decoding
from dino_exp.data.digests import digests, file_digest, missing, range_digest
from dino_exp.data.file_ranges import FileRanges, stamps
from dino_exp.data.labeled import LabeledSource, NameTable, short_digest
from dino_exp.data.row_columns import Columns, features_of
from dino_exp.data.source import CorruptImageError, Shrink, Splits, decode_image
from dino_exp.data.storage import patiently
from dino_exp.data.stored_kinds import ROWS, other_kind
from dino_exp.errors import UserError, in_words
from dino_exp.regular_file import MOST_BYTES, is_plain_name, path_below, read_regular, too_large

log = logging.getLogger(__name__)

ENDINGS = (".parquet",)
KINDS = (
    "a folder written by save_to_disk, or .parquet files: their folder, one file, or a pattern such as "
    "'/data/train-*.parquet'"
)


def load(
    *,
    root: str | None,
    val_root: str | None,
    channels: int,
    backend: str,
    image_column: str | None,
    label_column: str | None,
    bands: Sequence[int] | None = None,
    range: Sequence[object] | None = None,
) -> Splits:
    """Find the training images in `root` and the held-out images in `val_root`.

    The images of parquet files are unpacked into arrow files in `cache_root()` once, which random access
    needs. The package `datasets` is not used.

    Args:
        root: a folder written by `save_to_disk` (a Dataset, or a DatasetDict with a split `train`), or
            parquet files: their folder, a folder with one folder per split, the folder of one configuration
            in the hub's layouts, one file, a pattern, or a list. Files and folders named as held out
            (validation, test) are not trained on, unless all are.
        val_root: one of the same; "auto" is the split or the files of `root` that are named as held out, or
            the folder `val`, `validation` or `test` next to one named `train`; None is no held-out images.
        channels, backend, bands, range: see `Decoding`.
        image_column: None is the one column of the type Image, or the one that holds bytes.
        label_column: None is the one column of the type ClassLabel, or one with a name of `USUAL_LABELS`.

    Raises UserError where a file is missing or half-written, or columns cannot be images and labels.
    """
    if root is None:
        raise UserError(f"data.root is null: give {KINDS}.")
    train_files, found = _files("data.root", root)
    if val_root == "auto":
        beside = partial(files_of, "data.val_root")
        held_out = found or file_sets.find_held_out(root, train_files, ENDINGS, beside)
    else:
        held_out = files_of("data.val_root", val_root) if val_root else []
    file_sets.refuse_training_files(val_root, held_out, train_files)
    how = Decoding.of(channels, backend, bands, range), image_column, label_column
    train = HuggingfaceSource("data.root", train_files, *how)
    test = HuggingfaceSource("data.val_root", held_out, *how) if held_out else None
    if val_root == "auto" and test is not None and train.classes is not None and test.classes is None:
        log.warning("data.val_root = auto: %s has no labels and is not used.", test.path)
        test = None
    return Splits(train, test)


def files_of(key: str, value: str, held_out: bool = True) -> list[Path]:
    """Return the files that a key names: those named as held out, or the others; all where that is none."""
    files, named = _files(key, value)
    return (named or files) if held_out else files


class HuggingfaceSource(LabeledSource):
    """The rows of one data set, with the position of each image in its arrow file.

    files: one folder of `save_to_disk`, or parquet files.
    """

    def __init__(
        self,
        key: str,
        files: Sequence[Path],
        decoding: Decoding,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        super().__init__(files[0] if len(files) == 1 else files[0].parent)
        self.decoding = decoding
        if files[0].is_dir():
            files = _saved(files[0])
        self._folder = str(files[0].parent)
        columns = _columns(f"{key} = {self.path}", files)
        column = columns[0].image(image_column)
        _check_all_have(column, columns, files)
        self._columns = [
            (file, column) if file.suffix == ".arrow" else (unpacked(file, column), IMAGE) for file in files
        ]
        parts = [ranges_of(*each) for each in self._columns]
        self._bytes = FileRanges(stamps(file for file, _ in self._columns))
        self._key = short_digest(stamps(files), column)
        # Tensors, because DataLoader passes them to workers through shared memory.
        starts, lengths, named = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        self._starts, self._lengths, self._named = starts, lengths, named
        self._ends = torch.tensor([len(part.starts) for part in parts]).cumsum(0)
        if not len(self):
            raise UserError(f"{key} = {self.path}: no rows.")
        self._take_labels(columns, files, label_column)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        return decode_image(self.encoded(index), self.name(index), self.decoding, shrink=shrink)

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image as stored. Raises CorruptImageError."""
        name = self.name(index)
        where = self._range(index)
        if not where[2]:
            raise CorruptImageError(name, "the row has no image")
        if where[2] > MOST_BYTES:
            raise CorruptImageError(name, too_large(where[2]))
        try:
            content = patiently(lambda: self._bytes.read(*where), self._bytes.some_paths)
        except OSError as error:
            raise CorruptImageError(name, in_words(error)) from error
        return self._file(name, os.fsdecode(content)) if self._named[index] else content

    def _file(self, name: str, path: str) -> bytes:
        """Return the content of a file that a row names instead of having the image."""
        file = path_below(self._folder, path)
        if file is None:
            reason = f"names a file outside of {self._folder}, which is not read: {path[:200]}"
            raise CorruptImageError(name, reason)
        try:
            return patiently(lambda: read_regular(file), self._bytes.some_paths)
        except OSError as error:
            raise CorruptImageError(name, in_words(error)) from error

    def name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return f"{self.path}: row {index}"

    def content(self) -> Content:
        """Return the images that are there now."""
        return Content(self._names(), self._digests(every=False), self.labels)

    def fingerprint(self) -> str:
        """Return a digest of every image and of how it is decoded."""
        return short_digest(self._digests(every=True), *self.decoding.key)

    def _names(self) -> NameTable:
        """Return the paths that the rows have for their images, or the numbers of the rows."""
        paths = (path for each in self._columns for path in paths_of(*each))
        return NameTable.of([path or b"row %d" % row for row, path in enumerate(paths)])

    def _digests(self, every: bool) -> np.ndarray:
        # unknown are the sizes of no image, and of a file that a row names
        sizes = torch.where(self._named | (self._lengths == 0), -1, self._lengths).numpy()
        return digests(self._key, sizes, self.digest, self._bytes.some_paths, every)

    def digest(self, index: int, whole: int) -> int:
        """Return the digest of an image, as in `digests`. Raises OSError."""
        number, start, length = self._range(index)
        if self._named[index]:
            file = path_below(self._folder, os.fsdecode(self._bytes.read(number, start, length)))
            if file is not None:
                return file_digest(file, whole)
        elif length:
            return range_digest(self._bytes, number, start, length, whole)
        raise missing(self.name(index))

    def _range(self, index: int) -> tuple[int, int, int]:
        """Return the number of the file, the first byte and the length of an image, or of its path."""
        number = int(torch.searchsorted(self._ends, index, right=True))
        return number, int(self._starts[index]), int(self._lengths[index])

    def _take_labels(self, columns: list[Columns], files: Sequence[Path], chosen: str | None) -> None:
        column = columns[0].label(chosen)
        if column is None:
            return
        try:
            _check_all_have(column, columns, files)
            labels, classes = columns[0].labels(column, [values_of(file, column) for file in files])
        except UserError as error:
            if chosen or columns[0].names(column):
                raise
            log.warning("%s The images have no labels.", error)
            return
        if not chosen and columns[0].names(column) is None:
            log.info("%s: the labels are the column %s, by its name.", self.path, column)
        self.label(labels, classes)


def _columns(where: str, files: Sequence[Path]) -> list[Columns]:
    """Return the columns of each file of a data set."""
    info = files[0].parent / "dataset_info.json"
    features = None
    if files[0].suffix == ".arrow" and info.exists():
        with reading(info):
            features = dict(json.loads(info.read_text("utf-8"))["features"] or {})
    schemas = [schema_of(file) for file in files]
    return [Columns(where, schema, features or features_of(schema)) for schema in schemas]


def _check_all_have(column: str, columns: Sequence[Columns], files: Sequence[Path]) -> None:
    for other, file in zip(columns, files, strict=True):
        if column not in other.schema.names:
            raise UserError(f"{file}: no column {column}, which {files[0].name} has. Give files of one set.")
        if other.names(column) != columns[0].names(column):
            raise UserError(
                f"{file}: the classes of the column {column} are not those of {files[0].name}. Give files of "
                "one set."
            )


def _files(key: str, value: str) -> tuple[list[Path], list[Path]]:
    """Return the files (or the one folder of `save_to_disk`) to train on, and those named as held out."""
    root = file_sets.absolute_path(value)
    if (root / "state.json").exists():
        return [root], []
    if (root / "dataset_dict.json").exists():
        return _saved_splits(key, root)
    if root.is_dir() and not any(root.glob("*.parquet")):
        root, splits = _folders(key, root)
        value = str(root)
        if splits:
            train, held_out = _train_and_held_out(key, root, splits)
            files = file_sets.find_files(key, str(train), ENDINGS, KINDS)
            return files, [] if held_out is None else file_sets.find_files(key, str(held_out), ENDINGS, KINDS)
    files = file_sets.find_files(key, value, ENDINGS, KINDS)
    train_files = file_sets.training_files(files)
    held_out_files = [file for file in file_sets.held_out_files(files) if file not in train_files]
    return train_files, held_out_files


def _folders(key: str, root: Path) -> tuple[Path, list[str]]:
    """Return the folder of one set in the hub's layouts, and its splits if each has a folder of its own.

    These are `data/train-*.parquet`, `<configuration>/train-*.parquet`, `<configuration>/train/*.parquet`.
    """
    inner = sorted(
        path
        for path in root.iterdir()
        if not path.name.startswith(".") and path.is_dir() and any(path.rglob("*.parquet"))
    )
    splits = [path.name for path in inner if _is_split(path.name)]
    if splits:
        return root, splits
    if root / "data" in inner:
        inner = [root / "data"]
    if not inner:
        remedy = other_kind(root, ROWS) or f" Give {KINDS}."
        raise UserError(f"{key} = {root}: no .parquet files in that folder.{remedy}")
    if len(inner) > 1:
        names = ", ".join(path.name for path in inner[:10])
        raise UserError(
            f"{key} = {root}: several data sets ({names}); give the folder of one, {key}={inner[0]}."
        )
    if any(inner[0].glob("*.parquet")):
        return inner[0], []
    return _folders(key, inner[0])


def _is_split(name: str) -> bool:
    return not {"train", *file_sets.HELD_OUT}.isdisjoint(re.split("[^a-z]+", name.lower()))


def _saved_splits(key: str, root: Path) -> tuple[list[Path], list[Path]]:
    file = root / "dataset_dict.json"
    with reading(file):
        splits = list(map(str, json.loads(file.read_text("utf-8"))["splits"]))
        if not splits or not all(map(is_plain_name, splits)):
            raise ValueError(f"its splits are {splits}, which are not names of folders")
    train, held_out = _train_and_held_out(key, root, splits)
    return [train], [] if held_out is None else [held_out]


def _train_and_held_out(key: str, root: Path, splits: Sequence[str]) -> tuple[Path, Path | None]:
    held_out = next((root / name for name in file_sets.HELD_OUT if name in splits), None)
    if "train" in splits:
        return root / "train", held_out
    if len(splits) == 1:
        return root / splits[0], None
    raise UserError(
        f"{key} = {root}: none of its splits ({', '.join(splits)}) is named train; give the folder of one, "
        f"{key}={root / splits[0]}."
    )


def _saved(folder: Path) -> list[Path]:
    """Return the files that `save_to_disk` wrote into a folder."""
    state = folder / "state.json"
    with reading(state):
        content: Any = json.loads(state.read_text("utf-8"))
        names = [file["filename"] for file in content["_data_files"]]
        if not names or not all(map(is_plain_name, names)):
            raise ValueError("state.json names files of other folders, or none")
        indices = content.get("_indices_data_files") or content.get("_indices_files")
    if indices:
        raise UserError(
            f"{folder}: its rows are a selection, which is not read; save dataset.flatten_indices() instead."
        )
    return [folder / name for name in names]
