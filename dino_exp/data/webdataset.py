"""Tar shards in the webdataset format, read in any order.

The `webdataset` package streams shards through shuffle buffers, which makes the order of images depend on
the number of workers. Here it depends on the seed alone, so this module reads their format on its own.
"""

from __future__ import annotations

import json
import logging
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dino_exp.data import file_sets
from dino_exp.data.content import Content
from dino_exp.data.decoding import Decoding
from dino_exp.data.digests import digests, range_digest
from dino_exp.data.file_ranges import FileRanges, Stamp, stamps
from dino_exp.data.image_formats import known_endings
from dino_exp.data.kept import kept
from dino_exp.data.labeled import LabeledSource, NameTable, short_digest
from dino_exp.data.shard_headers import WITHOUT_LABEL, Notes, scan
from dino_exp.data.source import CorruptImageError, Shrink, Splits, decode_image
from dino_exp.data.storage import patiently
from dino_exp.errors import UserError, in_words
from dino_exp.regular_file import MOST_BYTES, read_regular, too_large

log = logging.getLogger(__name__)

ENDINGS = (".tar", *(f".tar.{kind}" for kind in ("gz", "bz2", "xz", "zst", "lz4")), ".tgz", ".tbz2", ".txz")
"""Endings of shards; compressed ones are found to be refused."""
KINDS = (
    "a folder of .tar shards, a pattern such as '/data/train-{000000..000146}.tar', or a text file (.txt) "
    "with one shard per line"
)
SCANNERS = 16
"""Threads that read headers: on a network disk most of the time is waiting."""
LAYOUT = 2
"""Version of the cached index, in its name."""


def load(
    *,
    root: str | None,
    val_root: str | None,
    channels: int,
    backend: str,
    bands: Sequence[int] | None = None,
    range: Sequence[object] | None = None,
) -> Splits:
    """Find the training images in the shards of `root` and the held-out images in those of `val_root`.

    Every image with a known ending is read, except masks and the like beside another image. Its label is a
    class number or name in `.cls`, `.class`, `.label`, or at a key of `.json` (`shard_labels.KEYS`), in a
    member of the same name anywhere in its shard. A file `classes.txt` in the folder of the shards names
    class i in line i; without it the numbers are the names, or the names are numbered in their order.
    The headers are read once per set of shards; the index made from them is kept in `cache_root()`.

    Args:
        root: a folder of shards, a brace or glob pattern, or a text file with one shard per line. Shards
            named as held out (val, validation, test) are not trained on, unless all are.
        val_root: one of the same; "auto" is the shards in `root`'s folder that are named as held out, or the
            folder or list `val` or `test` next to one named `train`; None is no held-out images.
        channels, backend, bands, range: see `Decoding`.

    Raises UserError where a shard is missing, compressed, half-written or damaged, and where labels are
    missing, no classes, or disagree.
    """
    if root is None:
        raise UserError(f"data.root is null: give {KINDS}.")
    files = files_of("data.root", root, held_out=False)
    if val_root == "auto":
        held_out = file_sets.find_held_out(root, files, ENDINGS, partial(files_of, "data.val_root"))
    else:
        held_out = files_of("data.val_root", val_root) if val_root else []
    file_sets.refuse_training_files(val_root, held_out, files)
    decoding = Decoding.of(channels, backend, bands, range)
    train = ShardSource("data.root", root, files, decoding)
    test = ShardSource("data.val_root", str(val_root), held_out, decoding) if held_out else None
    return Splits(train, test)


def files_of(key: str, value: str, held_out: bool = True) -> list[Path]:
    """Return the shards that a key names: those named as held out, or the others; all where that is none."""
    files = file_sets.find_files(key, value, ENDINGS, KINDS)
    return (file_sets.held_out_files(files) or files) if held_out else file_sets.training_files(files)


class ShardSource(LabeledSource):
    """The samples of some shards, with the position of each image and its label."""

    def __init__(self, key: str, value: str, files: list[Path], decoding: Decoding) -> None:
        super().__init__(files[0].parent)
        self.decoding = decoding
        try:
            shards = stamps(files)
        except OSError as error:
            raise UserError(f"{key} = {value}: shard {error.filename}: {error.strerror}.") from error
        index = _cached_index(shards)
        unlabeled = bool((index.labels == NO_LABEL).all())
        for what, count, example in json.loads(index.notes.tobytes()):
            if what != WITHOUT_LABEL or unlabeled:
                log.warning("%s: %s: %s, the first is %s", key, what, f"{count:,}", example)
        if not len(index.offsets):
            raise UserError(
                f"{key} = {value}: no images in {len(files):,} shards; they end in {known_endings()}."
            )
        self._bytes = FileRanges(shards)
        self._names = NameTable(index.names, index.ends)
        # Tensors, because DataLoader passes them to workers through shared memory.
        self._first, self._offsets, self._lengths = map(
            torch.from_numpy, (index.first, index.offsets, index.lengths)
        )
        if not unlabeled:
            self._take_labels(index.labels, json.loads(index.texts.tobytes()))

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        return decode_image(self.encoded(index), self.name(index), self.decoding, shrink=shrink)

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image as stored. Raises CorruptImageError."""
        name = self.name(index)
        where = self._shard(index), int(self._offsets[index]), int(self._lengths[index])
        if where[2] > MOST_BYTES:
            raise CorruptImageError(name, too_large(where[2]))
        try:
            return patiently(lambda: self._bytes.read(*where), self._bytes.some_paths)
        except OSError as error:
            raise CorruptImageError(name, error.strerror or str(error)) from error

    def name(self, index: int) -> str:
        member = self._names[index]
        return f"{self._bytes.files[self._shard(index)].path}: {member}"

    def content(self) -> Content:
        """Return the images that are there now."""
        return Content(self._names, self._digests(every=False), self.labels)

    def fingerprint(self) -> str:
        """Return a digest of every image and of how it is decoded."""
        return short_digest(self._digests(every=True), *self.decoding.key)

    def _digests(self, every: bool) -> np.ndarray:
        key = short_digest(self._bytes.files, self._offsets.numpy())
        return digests(key, self._lengths.numpy(), self.digest, self._bytes.some_paths, every)

    def digest(self, index: int, whole: int) -> int:
        """Return the digest of an image, as in `digests`. Raises OSError."""
        first, size = int(self._offsets[index]), int(self._lengths[index])
        return range_digest(self._bytes, self._shard(index), first, size, whole)

    def _shard(self, index: int) -> int:
        return int(torch.searchsorted(self._first, index, right=True)) - 1

    def _take_labels(self, labels: np.ndarray, texts: list[str]) -> None:
        without, named = np.flatnonzero(labels == NO_LABEL), np.flatnonzero(labels < NO_LABEL)
        if len(without):
            raise UserError(
                f"{self.name(int(without[0]))}: no label, as in {len(without):,} of {len(labels):,} samples; "
                "the others have one. Label all samples or none."
            )
        if 0 < len(named) < len(labels):
            number, name = int(np.argmax(labels >= 0)), int(named[0])
            raise UserError(
                f"{self.name(name)}: its label is the name {texts[_text_of(int(labels[name]))]!r}, but that "
                f"of {self.name(number)} is the number {labels[number]}. Label all samples with names, or "
                "all with numbers."
            )
        listing = self.path / "classes.txt"
        classes = _class_names(listing) if listing.exists() else None
        if len(named):
            classes, labels = classes or sorted(texts), _text_of(labels)
            position = {text: number for number, text in enumerate(classes)}
            unknown = [text for text in texts if text not in position]
            if unknown:
                raise UserError(
                    f"{listing}: {len(classes):,} names, but not {unknown[0]!r} ({len(unknown):,} such), the "
                    "label of a sample. Write one name per line."
                )
            labels = np.array([position[text] for text in texts])[labels]
        elif classes is None:
            numbers, labels = np.unique(labels, return_inverse=True)
            classes = [str(number) for number in numbers]
        elif labels.max() >= len(classes):
            raise UserError(
                f"{listing}: {len(classes):,} names, but a sample has label {labels.max()}. Write one name "
                "per line, the first for label 0."
            )
        self.label(labels, classes)


def _class_names(listing: Path) -> list[str]:
    try:
        return read_regular(listing).decode("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        raise UserError(f"{in_words(error)}. Write one name per line, the first for label 0.") from error


class _Index(NamedTuple):
    """What the headers say, in the order of shards and members: N images in S shards."""

    names: np.ndarray  # uint8: names of the image members; with `ends` as in `NameTable`
    ends: np.ndarray  # int64 (N + 1,)
    offsets: np.ndarray  # int64 (N,): first byte of the image in its shard
    lengths: np.ndarray  # int64 (N,): bytes of the image
    labels: np.ndarray  # int64 (N,): a number, NO_LABEL, or NO_LABEL - 1 - i for text i
    first: np.ndarray  # int64 (S,): the first image of each shard
    texts: np.ndarray  # uint8: JSON, a list of all names of classes
    notes: np.ndarray  # uint8: JSON, a list of (what, count, first example)


NO_LABEL = -1


def _text_of(label: Any) -> Any:
    """Return the position in `texts` of a label, or of labels, below NO_LABEL."""
    return NO_LABEL - 1 - label


def _cached_index(shards: list[Stamp]) -> _Index:
    """Return the index of the shards, from the cache if it is there; written there if it can be."""
    name = f"webdataset-{short_digest(LAYOUT, known_endings(), shards)}.npz"
    return kept(name, _Index, lambda: _scan_all(shards), "the index of the shards")


def _scan_all(shards: list[Stamp]) -> _Index:
    log.info("Reading the headers of %d shards in %s", len(shards), Path(shards[0].path).parent)
    names, ends = bytearray(), array("q", [0])
    offsets, lengths, labels, first = array("q"), array("q"), array("q"), array("q")
    texts: dict[str, int] = {}
    notes = Notes()
    empty = []
    with ThreadPoolExecutor(SCANNERS) as pool:
        for stamp, shard in zip(shards, pool.map(scan, (stamp.path for stamp in shards)), strict=True):
            first.append(len(offsets))
            for name in shard.names:
                names += os.fsencode(name)
                ends.append(len(names))
            offsets += shard.offsets
            lengths += shard.lengths
            for label in shard.labels:
                if isinstance(label, str):
                    label = _text_of(texts.setdefault(label, len(texts)))
                labels.append(NO_LABEL if label is None else label)
            for what, (count, example) in shard.notes.found.items():
                notes.add(what, example, count)
            if not shard.names:
                empty.append(stamp.path)
    if empty:
        notes.add("shards without images", empty[0], len(empty))
    numbers = (np.array(values, dtype=np.int64) for values in (ends, offsets, lengths, labels, first))
    described = (
        np.frombuffer(json.dumps(values).encode(), dtype=np.uint8)
        for values in (list(texts), [(what, *found) for what, found in notes.found.items()])
    )
    return _Index(np.frombuffer(names, dtype=np.uint8), *numbers, *described)
