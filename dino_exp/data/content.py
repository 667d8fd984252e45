"""What images a data set holds, wherever they lie and in whatever files: the content of a run's data."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

import numpy as np

from dino_exp.atomic import write_atomically
from dino_exp.data.digests import HASH, SIZE, UNREADABLE
from dino_exp.data.labeled import NameTable, StoredImages
from dino_exp.data.source import ImageSource, Splits
from dino_exp.errors import UserError, in_words
from dino_exp.regular_file import open_regular, too_large

VERSION = 1
"""Version of the file."""
MOST_BYTES = 2**31
"""Most bytes that are unpacked from a file: those of some 40 million images."""
PARTS = {
    "train": "training images",
    "test": "held-out images",
    "probe.train": "images of data.probe.train",
    "probe.val": "images of data.probe.val",
}
"""The parts of a set, in words."""
SHOWN = 3
"""Names of images in a sentence."""
BLOCK = 100_000
"""Names that are hashed at once, so that memory stays small."""


@dataclass(frozen=True)
class Content:
    """The images of one set, in their order.

    names: the images' names relative to their root, to say what has changed; no part of `key`.
    digests: uint64 (N,), of each image's size and enough of its bytes.
    labels: int64 (N,), or None for images without labels.
    """

    names: NameTable
    digests: np.ndarray
    labels: np.ndarray | None

    @property
    def key(self) -> str:
        """16 hexadecimal digits that change with any image, label, or their order."""
        hashed = hashlib.sha256(self.digests.astype("<u8").tobytes())
        hashed.update(b"" if self.labels is None else self.labels.astype("<i8").tobytes())
        return hashed.hexdigest()[:16]


class ImagesWithContent(StoredImages, Protocol):
    """Images in files, of which it is known what they are."""

    def content(self) -> Content:
        """Return the images that are there now. Raises MachineError where their storage is away."""
        ...


def contents_of(splits: Splits) -> dict[str, Content]:
    """Return the content of each part of a set that is stored in files: train, and those of PARTS there are.

    It is {} for what a configuration describes completely: generated images, and CIFAR-10, whose check sums
    torchvision compares. Fashion-MNIST has content, because its files may hold any set in their format.
    The images are read in part, which can take minutes on a slow disk, and seconds the next time.

    Raises MachineError where the storage is away and stays so.
    """
    parts = {"train": splits.train, "test": splits.test}
    if splits.probe is not None:  # a part that is one of the run's own images is recorded once
        own = {"probe.train": splits.probe.train, "probe.val": splits.probe.test}
        parts |= {name: part for name, part in own.items() if part not in parts.values()}
    having = {name: part for name, part in parts.items() if hasattr(part, "content")}
    return {name: cast(ImagesWithContent, part).content() for name, part in having.items()}


def key_of(contents: Mapping[str, Content]) -> str | None:
    """Return one key of all parts, for a configuration; None for a generated set."""
    if not contents:
        return None
    keys = [f"{name}:{contents[name].key}" for name in sorted(contents)]
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def write(path: Path, contents: Mapping[str, Content]) -> None:
    """Write the contents to a file, atomically."""
    arrays: dict[str, Any] = {"version": np.array(VERSION, dtype="<i8")}
    for part, content in contents.items():
        arrays[f"{part}.names"] = content.names.characters.numpy()
        arrays[f"{part}.lengths"] = np.diff(content.names.ends.numpy()).astype("<u4")
        arrays[f"{part}.sizes"] = (content.digests & SIZE).astype("<u4")
        arrays[f"{part}.hashes"] = (content.digests >> HASH).astype("<u4")
        if content.labels is not None:
            arrays[f"{part}.labels"] = content.labels.astype("<i8")
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def read(path: Path) -> dict[str, Content]:
    """Return the contents from a file of `write`, {} where it is missing; raises UserError if damaged."""
    try:
        with open_regular(path) as file:
            return _contents(_bounded_arrays(file))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{in_words(error)}. It says which images the run was trained on.") from error
    except Exception as error:  # damaged archives raise every kind of error
        raise UserError(
            f"{path}: damaged ({error}), so it is unknown which images the run was trained on."
        ) from error


def _bounded_arrays(file: IO[bytes]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise ValueError(too_large(size, MOST_BYTES))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def _contents(arrays: dict[str, np.ndarray]) -> dict[str, Content]:
    if int(arrays["version"]) != VERSION:
        raise ValueError(f"version {arrays['version']}, and this program knows {VERSION}")
    return {part: _content(arrays, part) for part in PARTS if f"{part}.names" in arrays}


def _content(arrays: dict[str, np.ndarray], part: str) -> Content:
    lengths, sizes, hashes = (
        np.asarray(arrays[f"{part}.{name}"], dtype=np.uint32) for name in ("lengths", "sizes", "hashes")
    )
    names, labels = arrays[f"{part}.names"], arrays.get(f"{part}.labels")
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    for values in (names, lengths, sizes, hashes, *([] if labels is None else [labels])):
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise ValueError(f"an array of {values.dtype} {values.shape}")
        if values is not names and len(values) != len(lengths):
            raise ValueError("arrays of different lengths")
    if names.dtype != np.uint8 or ends[-1] != len(names):
        raise ValueError("names of other lengths")
    digests = sizes.astype(np.uint64) | hashes.astype(np.uint64) << HASH
    return Content(NameTable(names, ends), digests, None if labels is None else labels.astype(np.int64))


def judged(contents: Mapping[str, Content]) -> tuple[str, str]:
    """Return the parts that are classified, and by which they are: those that features are judged by."""
    queries = "probe.val" if "probe.val" in contents else "test"
    return queries, "probe.train" if "probe.train" in contents else "train"


def overlaps(contents: Mapping[str, Content]) -> list[str]:
    """Return in words which of the images that are classified are learned from, or known by, as well.

    In sets of many images of one size a few of other content may have the same digest, so fewer than 1 in
    1,000 are not said.
    """
    queries, bank = judged(contents)
    said = []
    for known in dict.fromkeys(["train", bank]):
        test, train = contents.get(queries, NOTHING), contents.get(known, NOTHING)
        both = np.flatnonzero((test.digests >> HASH > 0) & np.isin(test.digests, train.digests))
        if len(both) and len(both) * 1000 >= len(test.digests):
            said.append(
                f"{len(both):,} of the {len(test.digests):,} {PARTS[queries]} are also {PARTS[known]} "
                f"({test.names[int(both[0])]}), so that k-NN and other evaluations say too much"
            )
    return said


def refuse_unreadable(source: ImageSource, contents: Mapping[str, Content], max_corrupt: float) -> None:
    """Raise UserError if more training images than `data.max_corrupt` were found to be unreadable.

    Of items of others' code this is known before the training, because each is read for its content.
    """
    train = contents.get("train", NOTHING)
    unreadable = np.flatnonzero(train.digests == UNREADABLE)
    if len(unreadable) > max_corrupt * len(train.digests):
        raise UserError(
            f"data.max_corrupt = {max_corrupt:g}: {len(unreadable):,} of {len(train.digests):,} images "
            f"cannot be read, the first is {source.name(int(unreadable[0]))}. Repair or remove them, or "
            "raise data.max_corrupt."
        )


# ---- differences ---------------------------------------------------------------------------------------


def differences(before: Mapping[str, Content], now: Mapping[str, Content]) -> str:
    """Return in words what has changed, "" if nothing: "2 images added (a.jpg, b.jpg), 1 removed (c.jpg)"."""
    said = []
    for part, words in PARTS.items():
        one, other = before.get(part, NOTHING), now.get(part, NOTHING)
        if one.key != other.key:
            of = "" if part == "train" else f"of the {words}: "
            said.append(of + ", ".join(_changes(one, other)))
    return "; ".join(said)


def _changes(before: Content, now: Content) -> list[str]:
    both = _in_both(before, now)
    said: list[str] = []
    for found, what, names in (
        (both.added, "added", now.names),
        (both.removed, "removed", before.names),
        (both.replaced, "replaced", now.names),
    ):
        if len(found):
            images = "" if said else " image" if len(found) == 1 else " images"
            some = [names[int(index)] for index in np.sort(found)[:SHOWN]] + ["..."] * (len(found) > SHOWN)
            examples = f" ({', '.join(some)})" if both.certain or what == "replaced" else ""
            said.append(f"{len(found):,}{images} {what}{examples}")
    in_order = np.sort(both.now)
    moved = in_order[both.now != in_order]
    if len(moved):
        which = "the others" if said else "the same images"
        said.append(f"{which} in another order (from {now.names[int(moved[0])]} on)")
    if before.labels is not None and now.labels is not None:
        labels, others = before.labels[both.before], now.labels[both.now]
        changed = np.flatnonzero(labels != others)
        if len(changed):
            first = changed[0]
            example = f"{now.names[int(both.now[first])]}: {labels[first]}, now {others[first]}"
            images = "image" if len(changed) == 1 else "images"
            said.append(f"labels of {len(changed):,} {images} changed ({example})")
    elif before.labels is not now.labels and len(both.now):
        said.append(f"the images have {'no labels any more' if now.labels is None else 'labels now'}")
    return said or ["some images replaced by others of the same size, or in another order"]


class _InBoth(NamedTuple):
    """Indices of images."""

    before: np.ndarray  # of an image that is in both sets, in its order there
    now: np.ndarray  # of the same image
    replaced: np.ndarray  # in `now`, of images with the name and not the digest of an earlier one
    removed: np.ndarray  # in `before`
    added: np.ndarray  # in `now`
    certain: bool  # False if removed and added images are only known by their number


def _in_both(before: Content, now: Content) -> _InBoth:
    """Find the images of one set in another: by name, or else by digest.

    Of a large set most digests are the size alone. Images of such sets that have other names, as in another
    format, are only counted.
    """
    left = np.arange(len(before.digests)), np.arange(len(now.digests))

    def take(keys: _Pair, fits: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None) -> _Pair:
        """Match what is left by equal keys, and return the indices of the pairs that fit."""
        nonlocal left
        i, j = _equal(keys[0][left[0]], keys[1][left[1]])
        one, other = left[0][i], left[1][j]
        if fits is not None:
            good = fits(before.digests[one], now.digests[other])
            one, other = one[good], other[good]
        left = _without(left[0], one, len(before.digests)), _without(left[1], other, len(now.digests))
        return one, other

    names = _hashes(before.names), _hashes(now.names)
    digests = before.digests, now.digests
    pairs = [take(names, _may_be_equal), take(digests, lambda one, other: one >> HASH != 0)]
    replaced = [take(names, lambda one, other: (one ^ other) & SIZE == 0)]
    by_size = 0
    if any(_is_size(each).any() for each in digests):
        by_size = len(take((before.digests & SIZE, now.digests & SIZE))[0])
    replaced.append(take(names))
    was, into = (np.concatenate(each) for each in zip(*pairs, strict=True))
    order = np.argsort(was)
    changed = np.concatenate([each for _, each in replaced])
    return _InBoth(was[order], into[order], changed, *left, certain=not by_size)


_Pair = tuple[np.ndarray, np.ndarray]


def _may_be_equal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return which digests are equal as far as both are known."""
    return (one == other) | ((_is_size(one) | _is_size(other)) & ((one ^ other) & SIZE == 0))


def _is_size(digests: np.ndarray) -> np.ndarray:
    """Return which digests are the size alone."""
    return (digests >> HASH == 0) & (digests != UNREADABLE)


def _without(indices: np.ndarray, taken: np.ndarray, count: int) -> np.ndarray:
    free = np.ones(count, dtype=bool)
    free[taken] = False
    return indices[free[indices]]


def _equal(one: np.ndarray, other: np.ndarray) -> _Pair:
    """Return the positions of equal keys, the k-th of a key in `one` beside the k-th in `other`."""
    order = np.argsort(np.concatenate([one, other]), kind="stable")  # equal keys: those of `one` come first
    keys, first = np.concatenate([one, other])[order], order < len(one)
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))[: len(keys)]
    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(keys))))
    ones = np.bincount(run[first], minlength=len(starts))
    others = np.bincount(run[~first], minlength=len(starts))
    rank = np.arange(len(keys)) - starts[run]
    rank[~first] -= ones[run[~first]]
    paired = rank < np.minimum(ones, others)[run]
    return order[paired & first], order[paired & ~first] - len(one)


def _hashes(names: NameTable) -> np.ndarray:
    """Return a hash of each name, uint64: the sum of its characters, each times a number of its place."""
    characters, ends = names.characters.numpy(), names.ends.numpy()
    longest = int(np.diff(ends).max(initial=0))
    factors = np.random.default_rng(0).integers(2**64, size=longest, dtype=np.uint64)
    found = np.zeros(len(names), dtype=np.uint64)
    for start in range(0, len(names), BLOCK):
        some = ends[start : start + BLOCK + 1]
        lengths, first = np.diff(some), some[0]
        places = np.arange(some[-1] - first) - np.repeat(some[:-1] - first, lengths)
        terms = (characters[first : some[-1]].astype(np.uint64) + np.uint64(1)) * factors[places]
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms)])
        found[start : start + BLOCK] = np.diff(sums[some - first])
    return found


NOTHING = Content(NameTable.of([]), np.empty(0, dtype=np.uint64), None)
