"""Hugging Face data sets that lie on the disk: saved by `save_to_disk`, or as parquet files."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dino_exp.data.file_ranges import stamps
from dino_exp.data.file_sets import (
    HELD_OUT,
    absolute,
    files_of,
    held_out_beside,
    held_out_part,
    training_part,
)
from dino_exp.data.labeled import Labeled, digest
from dino_exp.data.packed import packed_splits
from dino_exp.data.source import CorruptImageError, Shrink, Splits, decode_image, default_root
from dino_exp.errors import UserError

log = logging.getLogger(__name__)

ENDINGS = (".parquet",)
KINDS = (
    "a folder written by save_to_disk, or .parquet files: their folder, one file, or a pattern such as "
    "'/data/train-*.parquet'"
)
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The last bytes of a whole arrow file: a reader takes one that was cut between two batches for whole."""


def load(
    *,
    name: str,
    root: str | None,
    val_root: str | None,
    channels: int,
    mean: list[float],
    std: list[float],
    max_corrupt: float,
    backend: str,
    packed: bool,
    packed_side: int | None,
    image_column: str | None,
    label_column: str | None,
) -> Splits:
    """The images of `root`, and those of `val_root` as the held-out ones; no network is asked.

    root: a folder written by `save_to_disk` (a Dataset, or a DatasetDict with a split `train`), or parquet
    files: a folder that holds them or whose folder `data` does, one file, a pattern, or a list of them.
    Files that are named as held out (validation, test) are not trained on, unless all are.
    val_root: one of the same; "auto" takes the split or the files of `root` that are named as held out, or
    the folder `val`, `validation` or `test` beside one named `train`; None holds nothing out.
    image_column: null is the one column of the type Image. label_column: null is the one ClassLabel column.

    Parquet is unpacked into arrow files in `default_root()` once, which random access needs.
    name, mean, std and max_corrupt concern the loader; backend is `decode_image`'s, packed and packed_side
    are `packed_splits`'s.

    Raises UserError where the package is missing, or a file is missing or half-written.
    """
    if root is None:
        raise UserError(f"data.root is null: give {KINDS}.")
    train_files, found = _files("data.root", root)
    if val_root == "auto":
        held_out = found or held_out_beside(root, train_files, ENDINGS, _held_out)
    else:
        held_out = _held_out(val_root) if val_root else []
    if set(held_out) & set(train_files):
        raise UserError(
            f"data.val_root = {val_root}: {held_out[0]} is among the training images; give held-out ones, "
            "or null for none."
        )
    columns = image_column, label_column
    train = HuggingfaceSource("data.root", train_files, channels, backend, *columns)
    test = None
    if held_out:
        test = HuggingfaceSource("data.val_root", held_out, channels, backend, *columns)
        test.use_classes_of(train, f"data.val_root = {val_root}")
    return packed_splits(train, test, packed_side) if packed else Splits(train, test)


def _held_out(val_root: str) -> list[Path]:
    files, named = _files("data.val_root", val_root)
    return named or files


class HuggingfaceSource(Labeled):
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
            raise UserError(f"{key} = {self.place}: no rows.")
        datasets = _package()
        column = _column(key, rows, "image_column", image_column, datasets.Image)
        self._column = column
        # Undecoded, so that every source decodes alike.
        self._rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        label = _column(key, rows, "label_column", label_column, datasets.ClassLabel)
        if label is not None:
            self._take_labels(rows, label)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        image = self._rows[index][self._column]
        name = self.name(index)
        content = image and image["bytes"]
        if not content and image and image["path"]:
            try:
                content = Path(image["path"]).read_bytes()
            except OSError as error:
                raise CorruptImageError(name, f"{image['path']}: {error.strerror}") from error
        if not content:
            raise CorruptImageError(name, "the row holds no image")
        return decode_image(content, name, self._channels, backend=self._backend, shrink=shrink)

    def name(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return f"{self.place}: row {index}"

    def fingerprint(self) -> str:
        """Changes when a file does, or how it is read."""
        return digest(self._key, self._column, self._channels, self._backend)

    def _take_labels(self, rows: Any, column: str) -> None:
        values = rows.select_columns([column]).with_format("arrow")[:].column(0).to_pandas().to_numpy()
        names = getattr(rows.features[column], "names", None)
        if names is None:
            numbers, labels = np.unique(values, return_inverse=True)
            self.label(labels.astype(np.int64), [str(number) for number in numbers])
        elif np.nanmin(values, initial=0) < 0 or np.isnan(values.astype(np.float64)).any():
            log.info("%s: rows without a label (null or -1), so the labels are left aside", self.place)
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
    """The files (or the one folder of `save_to_disk`) to train on and those named as held out."""
    place = absolute(value)
    if (place / "state.json").exists():
        return [place], []
    if (place / "dataset_dict.json").exists():
        return _parts(key, place)
    if place.is_dir() and not any(place.glob("*.parquet")) and any(place.glob("data/*.parquet")):
        value = str(place / "data")  # the hub's layout
    files = files_of(key, value, ENDINGS, KINDS)
    train = training_part(files)
    held_out = [file for file in held_out_part(files) if file not in train]
    return train, held_out


def _parts(key: str, place: Path) -> tuple[list[Path], list[Path]]:
    splits = json.loads((place / "dataset_dict.json").read_text())["splits"]
    held_out = [place / name for name in HELD_OUT if name in splits][:1]
    if "train" in splits:
        return [place / "train"], held_out
    if len(splits) == 1:
        return [place / splits[0]], []
    raise UserError(
        f"{key} = {place}: none of its splits ({', '.join(splits)}) is named train; give the folder of one, "
        f"{key}={place / splits[0]}."
    )


def _saved(folder: Path) -> tuple[Any, str]:
    """The rows that `save_to_disk` wrote into a folder, and a key of the files."""
    datasets = _package()
    try:
        named = json.loads((folder / "state.json").read_text())["_data_files"]
        files = [folder / file["filename"] for file in named]
        for file in files:
            _check_end(file)
        return datasets.load_from_disk(str(folder)), digest(stamps(files))
    except Exception as error:  # pyarrow and datasets raise every kind of error on damaged files
        raise _half_written(folder, error) from error


def _check_end(file: Path) -> None:
    with file.open("rb") as content:
        content.seek(-min(len(END_OF_STREAM), file.stat().st_size), 2)
        if content.read() != END_OF_STREAM:
            raise _half_written(file, "it has no end marker")


def _unpacked(files: Sequence[Path]) -> tuple[Any, str]:
    """The rows of parquet files and a key of the files."""
    datasets = _package()
    from pyarrow import parquet

    for file in files:
        try:
            parquet.read_metadata(file)
        except Exception as error:
            raise _half_written(file, error) from error
    key = digest(stamps(files))
    cache = default_root() / "huggingface" / key
    log.info("%s parquet files in %s, as arrow files in %s", f"{len(files):,}", files[0].parent, cache)
    try:
        return datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=str(cache)), key
    except Exception as error:
        raise _half_written(files[0].parent, error.__cause__ or error) from error


def _column(key: str, rows: Any, option: str, name: str | None, kind: type) -> Any:
    """The column that an option names, or the one column of its kind; no label column is none."""
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


def _half_written(place: Path, reason: object) -> UserError:
    if isinstance(reason, UserError):
        return reason
    text = " ".join(str(reason).split()) or type(reason).__name__
    return UserError(f"{place}: half-written, damaged or not what its name says ({text}). Write it again.")
