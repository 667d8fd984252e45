"""Tar shards in the webdataset format, read in any order.

The `webdataset` package streams shards through shuffle buffers, which makes the order of images depend on
the number of workers. Here it depends on the seed alone, so this module reads their format on its own.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
import torch

from dino_exp.data import file_sets
from dino_exp.data.content import Content
from dino_exp.data.digests import digests, range_digest
from dino_exp.data.file_ranges import FileRanges, Stamp, stamps
from dino_exp.data.kept import kept
from dino_exp.data.labeled import LabeledSource, NameTable, short_digest
from dino_exp.data.packed import stored_splits
from dino_exp.data.source import IMAGE_SUFFIXES, CorruptImageError, Shrink, Splits, decode_image
from dino_exp.data.storage import patiently
from dino_exp.errors import UserError, in_words
from dino_exp.regular_file import MOST_BYTES, read_regular, too_large

log = logging.getLogger(__name__)

ENDINGS = (".tar", ".tar.gz", ".tgz")  # compressed ones are found to be refused
KINDS = (
    "a folder of .tar shards, a pattern such as '/data/train-{000000..000146}.tar', or a text file (.txt) "
    "with one shard per line"
)
SCANNERS = 16
"""Threads that read headers: on a network disk most of the time is waiting."""
MOST_LABEL_BYTES = 2**24
"""Largest label, and largest name or attributes of a member, that is read."""
GREATEST_LABEL = 2**31 - 1
LAYOUT = 1
"""Version of the cached index, in its name."""


def load(
    *,
    root: str | None,
    val_root: str | None,
    channels: int,
    backend: str,
    packed: bool,
    packed_side: int | None,
) -> Splits:
    """Find the training images in the shards of `root` and the held-out images in those of `val_root`.

    A sample is the consecutive members with one base name. Its image is the first member with the ending of
    an image, its label a number in `.cls`, or `label` or `cls` of `.json`. A file `classes.txt` in the folder
    of the shards names class i in line i; without it the numbers are the names.
    The headers are read once per set of shards; the index made from them is kept in `cache_root()`.

    Args:
        root: a folder of shards, a brace or glob pattern, or a text file with one shard per line. Shards
            named as held out (val, validation, test) are not trained on, unless all are.
        val_root: one of the same; "auto" is the shards in `root`'s folder that are named as held out, or the
            folder or list `val` or `test` next to one named `train`; None is no held-out images.
        channels, backend: see `decode_image`.
        packed, packed_side: see `stored_splits`.

    Raises UserError where a shard is missing, compressed, half-written or damaged.
    """
    if root is None:
        raise UserError(f"data.root is null: give {KINDS}.")
    files = file_sets.training_files(file_sets.find_files("data.root", root, ENDINGS, KINDS))
    if val_root == "auto":
        held_out = file_sets.find_held_out(root, files, ENDINGS, _held_out)
    else:
        held_out = _held_out(val_root) if val_root else []
    file_sets.refuse_training_files(val_root, held_out, files)
    train = ShardSource("data.root", root, files, channels, backend)
    test = ShardSource("data.val_root", str(val_root), held_out, channels, backend) if held_out else None
    return stored_splits(train, test, val_root, packed, packed_side)


def _held_out(val_root: str) -> list[Path]:
    files = file_sets.find_files("data.val_root", val_root, ENDINGS, KINDS)
    return file_sets.held_out_files(files) or files


class ShardSource(LabeledSource):
    """The samples of some shards, with the position of each image and its label."""

    def __init__(self, key: str, value: str, files: list[Path], channels: int, backend: str) -> None:
        super().__init__(files[0].parent)
        self._channels, self._backend = channels, backend
        try:
            shards = stamps(files)
        except OSError as error:
            raise UserError(f"{key} = {value}: shard {error.filename}: {error.strerror}.") from error
        index = _cached_index(shards)
        if not len(index.offsets):
            endings = " ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{key} = {value}: no images in {len(files):,} shards; they end in {endings}.")
        self._bytes = FileRanges(shards)
        self._names = NameTable(index.names, index.ends)
        # Tensors, because DataLoader passes them to workers through shared memory.
        self._first, self._offsets, self._lengths = map(
            torch.from_numpy, (index.first, index.offsets, index.lengths)
        )
        self._take_labels(index.labels)

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        name = self.name(index)
        where = self._shard(index), int(self._offsets[index]), int(self._lengths[index])
        if where[2] > MOST_BYTES:
            raise CorruptImageError(name, too_large(where[2]))
        try:
            content = patiently(lambda: self._bytes.read(*where), self._bytes.some_paths)
        except OSError as error:
            raise CorruptImageError(name, error.strerror or str(error)) from error
        return decode_image(content, name, self._channels, backend=self._backend, shrink=shrink)

    def name(self, index: int) -> str:
        member = self._names[index]
        return f"{self._bytes.files[self._shard(index)].path}: {member}"

    def content(self) -> Content:
        """Return the images that are there now."""
        return Content(self._names, self._digests(every=False), self.labels)

    def fingerprint(self) -> str:
        """Return a digest of every image and of how it is decoded."""
        return short_digest(self._digests(every=True), self._channels, self._backend)

    def _digests(self, every: bool) -> np.ndarray:
        key = short_digest(self._bytes.files, self._offsets.numpy())
        return digests(key, self._lengths.numpy(), self._digest, self._bytes.some_paths, every)

    def _digest(self, index: int, whole: int) -> int:
        first, size = int(self._offsets[index]), int(self._lengths[index])
        return range_digest(self._bytes, self._shard(index), first, size, whole)

    def _shard(self, index: int) -> int:
        return int(torch.searchsorted(self._first, index, right=True)) - 1

    def _take_labels(self, labels: np.ndarray) -> None:
        without = np.flatnonzero(labels < 0)
        if len(without) == len(labels):
            return
        if len(without):
            raise UserError(
                f"{self.name(int(without[0]))}: no label in .cls or .json, as in {len(without):,} of "
                f"{len(labels):,} samples; the others have one. Label all samples or none."
            )
        numbers, labels = np.unique(labels, return_inverse=True)
        listing = self.path / "classes.txt"
        if not listing.exists():
            self.label(labels, [str(number) for number in numbers])
            return
        try:
            classes = read_regular(listing).decode("utf-8-sig", "surrogateescape").splitlines()
        except OSError as error:
            raise UserError(f"{in_words(error)}. Write one name per line, the first for label 0.") from error
        if numbers[-1] >= len(classes):
            raise UserError(
                f"{listing}: {len(classes):,} names, but a sample has label {numbers[-1]}. Write one name "
                "per line, the first for label 0."
            )
        self.label(numbers[labels], classes)


class _Index(NamedTuple):
    """What the headers say, in the order of shards and members: N images in S shards."""

    names: np.ndarray  # uint8: names of the image members; with `ends` as in `NameTable`
    ends: np.ndarray  # int64 (N + 1,)
    offsets: np.ndarray  # int64 (N,): first byte of the image in its shard
    lengths: np.ndarray  # int64 (N,): bytes of the image
    labels: np.ndarray  # int64 (N,): -1 where there is none
    first: np.ndarray  # int64 (S,): the first image of each shard


def _cached_index(shards: list[Stamp]) -> _Index:
    """Return the index of the shards, from the cache if it is there; written there if it can be."""
    name = f"webdataset-{short_digest(LAYOUT, shards)}.npz"
    return kept(name, _Index, lambda: _scan_all(shards), "the index of the shards")


def _scan_all(shards: list[Stamp]) -> _Index:
    log.info("Reading the headers of %d shards in %s", len(shards), Path(shards[0].path).parent)
    with ThreadPoolExecutor(SCANNERS) as pool:
        parts = list(pool.map(_scan, shards))
    names, ends, offsets, lengths, labels, _ = map(list, zip(*parts, strict=True))
    sizes = np.cumsum([0] + [len(part) for part in names])
    return _Index(
        np.concatenate(names),
        np.concatenate([[0], *(part[1:] + size for part, size in zip(ends, sizes, strict=False))]),
        np.concatenate(offsets),
        np.concatenate(lengths),
        np.concatenate(labels),
        np.cumsum([0] + [len(part) for part in offsets])[:-1],
    )


def _scan(shard: Stamp) -> _Index:
    names, ends = bytearray(), array("q", [0])
    offsets, lengths, labels = array("q"), array("q"), array("q")
    try:
        with Path(shard.path).open("rb") as file:
            for image, label in _samples(file, shard.path):
                names += os.fsencode(image.name)
                ends.append(len(names))
                offsets.append(image.offset_data)
                lengths.append(image.size)
                labels.append(label)
    except OSError as error:
        raise UserError(f"shard {shard.path}: cannot be read: {error.strerror or error}.") from error
    except UserError:
        raise
    except Exception as error:  # damaged headers raise every kind of error
        raise _half_written(shard.path, str(error)) from error
    return _Index(
        np.frombuffer(names, dtype=np.uint8),
        *(np.array(values, dtype=np.int64) for values in (ends, offsets, lengths, labels, [0])),
    )


def _samples(file: IO[bytes], path: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield the image and the label (-1: none) of each sample that has an image."""
    if file.read(2) == b"\x1f\x8b":
        raise UserError(
            f"shard {path}: compressed with gzip, so it cannot be read in any order. Unpack it with gunzip, "
            "or with zcat into a .tar file."
        )
    file.seek(0)
    sample, image, label = "", None, -1
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as shard:
        for member in shard:
            shard.members.clear()  # type: ignore[attr-defined] # or it keeps an object for each
            if member.size < 0:  # tarfile would come back to earlier headers again and again
                raise tarfile.ReadError(f"{member.name} has a negative size")
            base = re.match(r"((?:.*/)?[^/.]+)\.([^/]+)$", member.name)
            if base is None or not member.isreg():
                continue
            if base[1] != sample:
                if image:
                    yield image, label
                sample, image, label = base[1], None, -1
            ending = "." + base[2].lower().rpartition(".")[2]
            if ending in IMAGE_SUFFIXES:
                image = image or member
            elif ending in (".cls", ".json") and label < 0:
                if member.size > MOST_LABEL_BYTES:
                    label_size = too_large(member.size, MOST_LABEL_BYTES)
                    raise UserError(f"{path}: {member.name} is no label: it has {label_size}.")
                file.seek(member.offset_data)
                label = _label(file.read(member.size), ending, f"{path}: {member.name}")
        end = shard.offset
    if image:
        yield image, label
    # tarfile stops at anything that is not a header; a complete file has zeros there.
    file.seek(end)
    closing = file.read(tarfile.BLOCKSIZE)
    if closing != bytes(tarfile.BLOCKSIZE):
        raise _half_written(path, f"a damaged header at byte {end:,}" if closing else "it has no end marker")


class _Headers:
    """What tarfile may read of a shard: blocks, and long names and attributes up to a limit."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_LABEL_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _label(content: bytes, ending: str, name: str) -> int:
    if ending == ".cls":
        digits = content.strip()
        if not digits.isdigit() or len(digits) > 10 or int(digits) > GREATEST_LABEL:
            raise UserError(
                f"{name}: {content[:20]!r} is not a label; a class number from 0 to {GREATEST_LABEL:,} is "
                "required."
            )
        return int(digits)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not JSON ({error}). Write the shard again.") from error
    numbers = [values.get(key) for key in ("label", "cls")] if isinstance(values, dict) else []
    return next((number for number in numbers if type(number) is int and 0 <= number <= GREATEST_LABEL), -1)


def _half_written(path: str, reason: str) -> UserError:
    return UserError(f"shard {path}: half-written or damaged ({reason}). Copy or write it again.")
