"""Hugging Face data sets on the disk: saved by `save_to_disk`, or as parquet files."""

from __future__ import annotations

import json
import logging
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_exp.data import file_sets
from dino_exp.data.content import Content
from dino_exp.data.digests import digest, digests, file_digest, missing
from dino_exp.data.file_ranges import stamps
from dino_exp.data.labeled import LabeledSource, NameTable, short_digest
from dino_exp.data.packed import stored_splits
from dino_exp.data.source import CorruptImageError, Shrink, Splits, decode_image
from dino_exp.errors import MEANINGS, UserError, in_words
from dino_exp.paths import cache_root
from dino_exp.regular_file import MOST_BYTES, is_plain_name, path_below, read_regular, too_large

log = logging.getLogger(__name__)

ENDINGS = (".parquet",)
KINDS = (
    "a folder written by save_to_disk, or .parquet files: their folder, one file, or a pattern such as "
    "'/data/train-*.parquet'"
)
BATCH = 10_000
"""Rows that are looked at together."""
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The last bytes of a complete arrow file. Readers do not notice a file that was cut between two batches."""


def load(
    *,
    root: str | None,
    val_root: str | None,
    channels: int,
    backend: str,
    packed: bool,
    packed_side: int | None,
    image_column: str | None,
    label_column: str | None,
) -> Splits:
    """Find the training images in `root` and the held-out images in `val_root`, without any network.

    Parquet is unpacked into arrow files in `cache_root()` once, which random access needs.

    Args:
        root: a folder written by `save_to_disk` (a Dataset, or a DatasetDict with a split `train`), or
            parquet files: their folder, the folder that has them in `data`, one file, a pattern, or a list.
            Files named as held out (validation, test) are not trained on, unless all are.
        val_root: one of the same; "auto" is the split or the files of `root` that are named as held out, or
            the folder `val`, `validation` or `test` next to one named `train`; None is no held-out images.
        channels, backend: see `decode_image`.
        packed, packed_side: see `stored_splits`.
        image_column: None is the one column of the type Image.
        label_column: None is the one column of the type ClassLabel, if there is one.

    Raises UserError where the package is missing, or a file is missing or half-written.
    """
    if root is None:
        raise UserError(f"data.root is null: give {KINDS}.")
    train_files, found = _files("data.root", root)
    if val_root == "auto":
        held_out = found or file_sets.find_held_out(root, train_files, ENDINGS, _held_out)
    else:
        held_out = _held_out(val_root) if val_root else []
    file_sets.refuse_training_files(val_root, held_out, train_files)
    how = channels, backend, image_column, label_column
    train = HuggingfaceSource("data.root", train_files, *how)
    test = HuggingfaceSource("data.val_root", held_out, *how) if held_out else None
    return stored_splits(train, test, val_root, packed, packed_side)


def _held_out(val_root: str) -> list[Path]:
    files, named = _files("data.val_root", val_root)
    return named or files


class HuggingfaceSource(LabeledSource):
    """The rows of one data set; the images stay encoded in memory-mapped arrow files.

    files: one folder of `save_to_disk`, or parquet files.
    """

    def __init__(
        self,
        key: str,
        files: Sequence[Path],
        channels: int,
        backend: str,
        image_column: str | None,
        label_column: str | None,
    ) -> None:
        super().__init__(files[0] if len(files) == 1 else files[0].parent)
        self._channels, self._backend = channels, backend
        rows, self._key = _saved(files[0]) if files[0].is_dir() else _unpacked(files)
        if not len(rows):
            raise UserError(f"{key} = {self.path}: no rows.")
        datasets = _package()
        column = _column(key, rows, "image_column", image_column, datasets.Image)
        self._column = column
        self._folder = str(files[0] if files[0].is_dir() else files[0].parent)
        # Not decoded, so that every source decodes alike, and as Arrow has it, so that its size is known.
        self._rows = _images(key, rows, column).with_format("arrow")
        label = _column(key, rows, "label_column", label_column, datasets.ClassLabel)
        if label is not None:
            self._take_labels(rows, label)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        name = self.name(index)
        image = self._rows[index].column(0)[0]
        stored, path = (image[part] for part in ("bytes", "path")) if image.is_valid else (None, None)
        content = b""
        if stored is not None and stored.is_valid:
            size = stored.as_buffer().size
            if size > MOST_BYTES:
                raise CorruptImageError(name, too_large(size))
            content = stored.as_py()
        if not content and path is not None and path.as_py():
            content = self._file(name, path.as_py())
        if not content:
            raise CorruptImageError(name, "the row has no image")
        return decode_image(content, name, self._channels, backend=self._backend, shrink=shrink)

    def _file(self, name: str, path: str) -> bytes:
        """Return the content of a file that a row names instead of having the image."""
        file = path_below(self._folder, path)
        if file is None:
            reason = f"names a file outside of {self._folder}, which is not read: {path[:200]}"
            raise CorruptImageError(name, reason)
        try:
            return read_regular(file)
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
        return short_digest(self._digests(every=True), self._channels, self._backend)

    def _names(self) -> NameTable:
        """Return the paths that the rows have for their images, or the numbers of the rows."""
        names, ends = bytearray(), array("q", [0])
        for rows, paths in self._parts("path"):
            for row, path in zip(rows, paths.cast("binary").to_pylist(), strict=True):
                names += path or b"row %d" % row
                ends.append(len(names))
        return NameTable(names, ends)

    def _digests(self, every: bool) -> np.ndarray:
        from pyarrow import compute

        sizes = np.full(len(self), -1, dtype=np.int64)  # of a file that a row names, or of no image
        for rows, contents in self._parts("bytes"):
            lengths = compute.fill_null(compute.binary_length(contents), 0).to_numpy()
            sizes[rows.start : rows.stop] = np.where(lengths > 0, lengths, -1)
        return digests((self._key, self._column), sizes, self._digest, tuple, every)

    def _parts(self, field: str) -> Iterator[tuple[range, Any]]:
        """Yield a field of the images, rows by rows."""
        from pyarrow import compute

        for start in range(0, len(self), BATCH):
            images = self._rows[start : start + BATCH].column(0)
            yield range(start, start + len(images)), compute.struct_field(images, field)

    def _digest(self, index: int, whole: int) -> int:
        image = self._rows[index].column(0)[0]
        stored, path = (image[part] for part in ("bytes", "path")) if image.is_valid else (None, None)
        if stored is not None and stored.is_valid and stored.as_buffer().size:
            content = memoryview(stored.as_buffer())
            return digest(len(content), lambda at, count: content[at : at + count], whole)
        name = os.fsdecode(path.cast("binary").as_py() or b"") if path is not None else ""
        file = path_below(self._folder, name)
        if file is None:
            raise missing(self.name(index))
        return file_digest(file, whole)

    def _take_labels(self, rows: Any, column: str) -> None:
        values = rows.select_columns([column]).with_format("arrow")[:].column(0).to_pandas().to_numpy()
        names = getattr(rows.features[column], "names", None)
        if names is None:
            numbers, labels = np.unique(values, return_inverse=True)
            self.label(labels.astype(np.int64), [str(number) for number in numbers])
        elif np.nanmin(values, initial=0) < 0 or np.isnan(values.astype(np.float64)).any():
            log.info("%s: some rows have no label (null or -1), so all labels are ignored.", self.path)
        else:
            self.label(values.astype(np.int64), list(names))


def _package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "data=huggingface needs the package datasets, which is not installed: "
            "pip install 'dino-exp[huggingface]'."
        ) from error
    datasets.config.HF_HUB_OFFLINE = True
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    return datasets


def _files(key: str, value: str) -> tuple[list[Path], list[Path]]:
    """Return the files (or the one folder of `save_to_disk`) to train on, and those named as held out."""
    root = file_sets.absolute_path(value)
    if (root / "state.json").exists():
        return [root], []
    if (root / "dataset_dict.json").exists():
        return _saved_splits(key, root)
    if root.is_dir() and not any(root.glob("*.parquet")) and any(root.glob("data/*.parquet")):
        value = str(root / "data")  # the hub's layout
    files = file_sets.find_files(key, value, ENDINGS, KINDS)
    train = file_sets.training_files(files)
    held_out = [file for file in file_sets.held_out_files(files) if file not in train]
    return train, held_out


def _saved_splits(key: str, root: Path) -> tuple[list[Path], list[Path]]:
    file = root / "dataset_dict.json"
    try:
        splits = list(map(str, json.loads(file.read_text("utf-8"))["splits"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _half_written(file, error) from error
    if not splits or not all(map(is_plain_name, splits)):
        raise _half_written(file, f"its splits are {splits}, which are not names of folders")
    held_out = [root / name for name in file_sets.HELD_OUT if name in splits][:1]
    if "train" in splits:
        return [root / "train"], held_out
    if len(splits) == 1:
        return [root / splits[0]], []
    raise UserError(
        f"{key} = {root}: none of its splits ({', '.join(splits)}) is named train; give the folder of one, "
        f"{key}={root / splits[0]}."
    )


def _saved(folder: Path) -> tuple[Any, str]:
    """Return the rows that `save_to_disk` wrote into a folder, and a digest of the files."""
    datasets = _package()
    try:
        named = json.loads((folder / "state.json").read_text("utf-8"))["_data_files"]
        files = [folder / file["filename"] for file in named if is_plain_name(file["filename"])]
        if len(files) != len(named):
            raise ValueError("state.json names files of other folders")
        for file in files:
            _check_end(file)
        return datasets.load_from_disk(str(folder)), short_digest(stamps(files))
    except Exception as error:  # pyarrow and datasets raise every kind of error on damaged files
        raise _half_written(folder, error) from error


def _check_end(file: Path) -> None:
    with file.open("rb") as content:
        content.seek(-min(len(END_OF_STREAM), file.stat().st_size), 2)
        if content.read() != END_OF_STREAM:
            raise _half_written(file, "it has no end marker")


def _unpacked(files: Sequence[Path]) -> tuple[Any, str]:
    """Return the rows of parquet files, and a digest of the files."""
    datasets = _package()
    from pyarrow import parquet

    for file in files:
        try:
            stamps([file])  # refuses a pipe, for which Arrow would wait
            parquet.read_metadata(file)
        except Exception as error:
            raise _half_written(file, error) from error
    key = short_digest(stamps(files))
    cache = cache_root() / "huggingface" / key
    log.info("Reading %s parquet files in %s as arrow files in %s", f"{len(files):,}", files[0].parent, cache)
    try:
        return datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=str(cache)), key
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in MEANINGS:  # of the cache: the files could be read
            raise UserError(
                f"{in_words(cause)}. Parquet is unpacked into {cache}; set XDG_CACHE_HOME to another folder, "
                "which can be written and has room for the images."
            ) from error
        raise _half_written(files[0].parent, error.__cause__ or error) from error


def _images(key: str, rows: Any, column: str) -> Any:
    """Return the column of images alone, each as its bytes and its path."""
    try:
        return rows.select_columns([column]).cast_column(column, _package().Image(decode=False))
    except Exception as error:  # Arrow raises several kinds
        raise UserError(
            f"{key}: the column {column} has {rows.features[column]}, not images; choose another with "
            "data.image_column."
        ) from error


def _column(key: str, rows: Any, option: str, name: str | None, kind: type) -> Any:
    """Return the column that an option names, or the only one of its kind; None for no label column."""
    if name is not None:
        if name not in rows.column_names:
            raise UserError(f"data.{option} = {name}: the columns are {', '.join(rows.column_names)}.")
        return name
    found = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    if len(found) == 1 or (not found and option == "label_column"):
        return found[0] if found else None
    what = f"{len(found)} columns" if found else "no column"
    raise UserError(
        f"{key}: {what} of the type {kind.__name__}; choose with data.{option} from "
        f"{', '.join(found or rows.column_names)}."
    )


def _half_written(path: Path, reason: object) -> UserError:
    if isinstance(reason, UserError):
        return reason
    text = " ".join(str(reason).split()) or type(reason).__name__
    return UserError(f"{path}: half-written, damaged or not what its name says ({text}). Write it again.")
