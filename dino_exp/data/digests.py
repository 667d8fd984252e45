"""Digests of stored images, by which the same images are known wherever they lie and in whatever files.

A digest has an image's size in its lower 32 bits and a hash of its bytes in the upper ones, where 0 stands
for no hash. To know what a run is trained on, enough bytes of enough images are read; for what is used in
place of the images, all bytes of all of them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from dino_exp.data.file_ranges import FileRanges
from dino_exp.data.kept import kept
from dino_exp.data.labeled import NameTable, short_digest
from dino_exp.data.storage import PASSING, patiently
from dino_exp.data.subset import evenly_spread
from dino_exp.regular_file import open_regular

HASHED = 65_536
"""Images of a set that are read; of more, as many that are evenly spread."""
WHOLE, PIECE = 64 * 1024, 16 * 1024
"""Bytes of the largest image that is read entirely, and of each of the three pieces of a larger one."""
SIZE_ALONE, ALL = 0, 2**63
"""Values in place of WHOLE: images are not read, or entirely whatever their size."""
CHUNK = 2**20
READERS = 16
"""Threads that read: on a network disk most of the time is waiting."""
TOGETHER = 512
"""Images that a thread reads in one go."""
LAYOUT = 1
"""Version of the digests, in the names of the files that keep them."""

SIZE = np.uint64(2**32 - 1)
"""The bits of a digest that hold the size."""
HASH = np.uint64(32)
"""The lowest bit of the hash."""
UNREADABLE = 2**32 - 1
"""The digest of an image that is missing or cannot be read; as a size it is above all others."""

Digest = Callable[[int, int], int]
"""A function of an image's index and a value in place of WHOLE that returns its digest. Raises OSError."""
Piece = Callable[[int, int], bytes | memoryview]
"""A function that returns so many bytes of an image from a position on. Raises OSError."""


def digest(size: int, read: Piece, whole: int = WHOLE) -> int:
    """Return the digest of an image of `size` bytes. Raises OSError."""
    found = min(size, UNREADABLE - 1)
    if whole == SIZE_ALONE:
        return found
    if size <= whole:
        pieces = [(at, min(CHUNK, size - at)) for at in range(0, size, CHUNK)]
    else:
        pieces = [(at, PIECE) for at in (0, (size - PIECE) // 2, size - PIECE)]
    hashed = 0
    for piece in pieces:
        hashed = zlib.crc32(read(*piece), hashed)
    return found | (hashed or 1) << int(HASH)


def file_digest(path: str, whole: int) -> int:
    """Return the digest of an image that is a file. Raises OSError."""
    with open_regular(path) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        return digest(size, lambda at, count: os.pread(descriptor, count, at), whole)


def range_digest(files: FileRanges, number: int, first: int, size: int, whole: int) -> int:
    """Return the digest of an image that is `size` bytes of file `number` from `first` on. Raises OSError."""
    return digest(size, lambda at, count: files.read(number, first + at, count), whole)


def file_sizes(base: str, names: NameTable) -> tuple[np.ndarray, str]:
    """Return the sizes of files, int64, -1 where unknown, and a digest of their paths, sizes and times."""
    folder = os.fsencode(base)
    hashed = hashlib.sha256(
        folder + b"\0" + names.ends.numpy().tobytes() + names.characters.numpy().tobytes()
    )

    def sizes(part: range) -> np.ndarray:
        found = np.full((len(part), 3), -1, dtype=np.int64)
        for row, name in enumerate(names.encoded(part)):
            with suppress(OSError, ValueError):  # missing; NUL in the name
                status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 (10^7 times)
                found[row] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return found

    found = np.empty(len(names), dtype=np.int64)
    with ThreadPoolExecutor(READERS) as pool:
        for part, each in zip(_parts(len(names)), pool.map(sizes, _parts(len(names))), strict=True):
            found[part.start : part.stop] = each[:, 0]
            hashed.update(each.tobytes())
    return found, hashed.hexdigest()


class _Digests(NamedTuple):
    digests: np.ndarray  # uint64 (N,)


def digests(
    key: object, sizes: np.ndarray, of: Digest, others: Callable[[], Iterable[str]], every: bool
) -> np.ndarray:
    """Return the digests of images, uint64 (N,), from the cache if they are there.

    An error that may pass is waited for, because a disk that is away must not make another data set. An image
    that cannot be read, and one whose size `sizes` does not have, is read again each time.

    Args:
        key: changes with any of the files.
        sizes: int64 (N,), -1 where unknown.
        of: returns the digest of one image.
        others: paths of a few of the files, as in `patiently`.
        every: whether to read all bytes of all images.

    Raises MachineError where the storage stays away.
    """
    hashed = np.full(len(sizes), every or len(sizes) <= HASHED)
    if not hashed.all():
        hashed[evenly_spread(len(sizes), HASHED)] = True
    whole = ALL if every else WHOLE

    def read(found: np.ndarray, indices: Sequence[int]) -> list[tuple[int, OSError]]:
        failed = []
        for index in indices:
            try:
                found[index] = of(index, whole if hashed[index] else SIZE_ALONE)
            except OSError as error:
                failed.append((index, error))
        return failed

    def read_patiently(found: np.ndarray, left: list[int]) -> np.ndarray:
        found[left] = UNREADABLE

        def again() -> None:
            nonlocal left
            failed = read(found, left)
            left = [index for index, _ in failed]
            if failed:
                raise max((error for _, error in failed), key=lambda error: error.errno in PASSING)

        with suppress(OSError):  # it is these images that cannot be read
            patiently(again, others)
        return found

    def made() -> _Digests:
        found = np.where(sizes < 0, UNREADABLE, np.minimum(sizes, UNREADABLE - 1)).astype(np.uint64)
        wanted = np.flatnonzero(hashed | (sizes < 0))
        with ThreadPoolExecutor(READERS) as pool:
            parts = (wanted[part.start : part.stop].tolist() for part in _parts(len(wanted)))
            failed = pool.map(lambda part: read(found, part), parts)
            left = [index for part in failed for index, _ in part]
        return _Digests(read_patiently(found, left))

    more = every and (len(sizes) > HASHED or sizes.max(initial=0) > WHOLE)  # than is read otherwise
    name = short_digest(LAYOUT, key, sizes, more)
    found = kept(f"digests-{name}.npz", _Digests, made, "what is known of the images").digests
    left = np.flatnonzero((found == UNREADABLE) | (sizes < 0)).tolist()
    return read_patiently(found, left) if left else found


def missing(name: str) -> OSError:
    """Return the error of an image that is not there."""
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _parts(count: int) -> Iterable[range]:
    return (range(start, min(start + TOGETHER, count)) for start in range(0, count, TOGETHER))
