"""What images a data set holds, wherever they lie and in whatever files: the content of a run's data."""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dino_exp.atomic import write_atomically
from dino_exp.data.digests import SIZE
from dino_exp.data.labeled import NameTable
from dino_exp.data.source import Splits
from dino_exp.errors import UserError, in_words
from dino_exp.regular_file import open_regular, too_large

VERSION = 1
"""Version of the file."""
MOST_BYTES = 2**31
"""Most bytes that are unpacked from a file: those of some 40 million images."""
PARTS = {"train": "", "test": "of the held-out images: "}
SHOWN = 3
"""Names of images in a sentence."""
BLOCK = 100_000
"""Names that are hashed at once, so that memory stays small."""
HASH = np.uint64(32)
"""The bits of a digest below its hash."""


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


def contents_of(splits: Splits) -> dict[str, Content]:
    """Return the content of each part of a set that is stored in files: train, and test if there is one.

    A generated set, which its configuration describes completely, has none: {}.
    """
    parts = {"train": splits.train, "test": splits.test}
    return {name: part.content() for name, part in parts.items() if hasattr(part, "content")}


def key_of(contents: Mapping[str, Content]) -> str | None:
    """Return one key of all parts, for a configuration; None for a generated set."""
    if not contents:
        return None
    keys = [f"{name}:{contents[name].key}" for name in sorted(contents)]
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def write(path: Path, contents: Mapping[str, Content]) -> None:
    """Write the contents to a file, atomically."""
    arrays: dict[str, np.ndarray] = {"version": np.array(VERSION, dtype="<i8")}
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


# ---- differences ---------------------------------------------------------------------------------------


def differences(before: Mapping[str, Content], now: Mapping[str, Content]) -> str:
    """Return in words which images differ: '2 added (cat/p041.jpg, ...), 1 changed (dog/p3.jpg)'; '' for none."""
    said = []
    for part, of in PARTS.items():
        if part in before and part in now:
            changed = _changes(before[part], now[part])
        elif part in before or part in now:
            there = before.get(part) or now[part]
            changed = [
                _examples(
                    len(there.digests), "added" if part in now else "removed", there.names, range(SHOWN)
                )
            ]
        else:
            continue
        if changed:
            said.append(of + ", ".join(changed))
    return "; ".join(said)


def _changes(before: Content, now: Content) -> list[str]:
    if before.key == now.key:
        return []
    was, into, replaced = _pairs(before, now)
    gone = np.setdiff1d(np.arange(len(before.digests)), was)
    new = np.setdiff1d(np.arange(len(now.digests)), into)
    counts = (
        (new, "added", now.names),
        (gone, "removed", before.names),
        (np.sort(replaced), "replaced", now.names),
    )
    said = [_examples(len(found), how, names, found) for found, how, names in counts if len(found)]
    order = np.argsort(was)
    was, into = was[order], into[order]
    moved = np.flatnonzero(np.diff(into) < 0)
    if len(moved):
        which = "the others" if said else "the same images"
        said.append(f"{which} in another order (from {now.names[int(into[moved[0] + 1])]} on)")
    return said + _relabeled(before, now, was, into)


def _relabeled(before: Content, now: Content, was: np.ndarray, into: np.ndarray) -> list[str]:
    if before.labels is None or now.labels is None:
        if before.labels is now.labels:
            return []
        return ["the images have no labels any more" if now.labels is None else "the images have labels now"]
    changed = np.flatnonzero(before.labels[was] != now.labels[into])
    if not len(changed):
        return []
    first = changed[np.argmin(into[changed])]
    name, old, new = now.names[int(into[first])], before.labels[was[first]], now.labels[into[first]]
    return [f"labels of {len(changed):,} images changed ({name}: {old}, now {new})"]


def _examples(count: int, how: str, names: NameTable, indices: Iterable[int]) -> str:
    shown = [names[int(index)] for index in itertools.islice(indices, min(SHOWN, count))]
    return f"{count:,} {'image' if count == 1 else 'images'} {how} ({', '.join(shown)}{', ...' if count > SHOWN else ''})"


def _pairs(before: Content, now: Content) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of the images that are in both, and of those that another image of the name replaced.

    An image is first found by its name, if its digest agrees as far as it is known in both; then by its
    digest, whatever its name; then by its size, where a digest is that alone. What is left and has the same
    name was replaced.
    """
    ids = _hashes(before.names), _hashes(now.names)
    was, into = _matched(*ids)
    a, b = before.digests[was], now.digests[into]
    same = (a == b) | (((a ^ b) & SIZE == 0) & ((a >> HASH == 0) | (b >> HASH == 0)))
    pairs = [(was[same], into[same])]
    left = _rest(len(before.digests), was[same]), _rest(len(now.digests), into[same])

    def match(
        keys: tuple[np.ndarray, np.ndarray], of: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        nonlocal left
        i, j = _matched(keys[0][of[0]], keys[1][of[1]])
        found = of[0][i], of[1][j]
        pairs.append(found)
        left = np.setdiff1d(left[0], found[0]), np.setdiff1d(left[1], found[1])
        return found

    digests = before.digests, now.digests
    match(digests, left)
    sizes = before.digests & SIZE, now.digests & SIZE
    match(sizes, (left[0][digests[0][left[0]] >> HASH == 0], left[1]))
    match(sizes, (left[0], left[1][digests[1][left[1]] >> HASH == 0]))
    _, replaced = match(ids, left)
    was, into = (np.concatenate(each) for each in zip(*pairs, strict=True))
    return was, into, replaced


def _rest(count: int, taken: np.ndarray) -> np.ndarray:
    free = np.ones(count, dtype=bool)
    free[taken] = False
    return np.flatnonzero(free)


def _matched(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of equal keys, the k-th of a key in `one` with the k-th in `other`."""
    _, ids = np.unique(np.concatenate([one, other]), return_inverse=True)
    keys = [_numbered(each, len(ids)) for each in (ids[: len(one)], ids[len(one) :])]
    _, was, into = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    return was, into


def _numbered(ids: np.ndarray, factor: int) -> np.ndarray:
    """Return ids that are all different: id * factor + how many of the same are before."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    numbered = np.empty(len(ids), dtype=np.int64)
    numbered[order] = ordered * factor + np.arange(len(ids)) - starts
    return numbered


def _hashes(names: NameTable) -> np.ndarray:
    """Return a 64-bit hash of each name."""
    characters, ends = names.characters.numpy(), names.ends.numpy()
    lengths = np.diff(ends)
    weights = np.random.default_rng(0).integers(2**63, size=int(lengths.max(initial=0)) + 1, dtype=np.uint64)
    found = np.zeros(len(lengths), dtype=np.uint64)
    for start in range(0, len(lengths), BLOCK):
        some = lengths[start : start + BLOCK]
        first, last = ends[start], ends[start + len(some)]
        at = np.arange(last - first) - np.repeat(ends[start : start + len(some)] - first, some)
        terms = (characters[first:last].astype(np.uint64) + np.uint64(1)) * weights[at]
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms)])
        found[start : start + len(some)] = np.diff(sums[ends[start : start + len(some) + 1] - first])
    return found
