"""Digests of stored images, by which the same images are known wherever they lie and in whatever files.

A digest has an image's size in its lower 32 bits and in the upper ones a hash of enough of its bytes: of all
of a small image, and of the beginning, the middle and the end of a large one. Of a large set, only the sizes
of most images are read.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dino_exp.data.storage import patiently
from dino_exp.data.subset import evenly_spread
from dino_exp.regular_file import open_regular

HASHED = 65_536
"""Images of a set whose bytes are read; of more, as many that are evenly spread."""
READERS = 16
"""Threads that read: on a network disk most of the time is waiting."""
TOGETHER = 256
"""Images that a thread reads in one go."""
WHOLE, PIECE = 12 * 1024, 4 * 1024
"""Bytes of the largest image that is read entirely, and of each of the three pieces of a larger one."""
UNREADABLE = 2**32 - 1
"""The digest of an image that is missing or cannot be read; greater than any size."""
SIZE = np.uint64(2**32 - 1)
"""The bits of a digest that hold the size."""

Piece = Callable[[int, int], bytes]
"""A function that returns so many bytes of an image from some position on."""
Digest = Callable[[int, bool], int]
"""A function that returns the digest of an image by its index, with a hash or not. Raises OSError."""


def digest(size: int, read: Piece | None) -> int:
    """Return the digest of an image of `size` bytes; without `read` of its size alone."""
    digest = min(size, UNREADABLE - 1)
    if read is None:
        return digest
    if size <= WHOLE:
        hashed = zlib.crc32(read(0, size))
    else:
        hashed = 0
        for at in (0, (size - PIECE) // 2, size - PIECE):
            hashed = zlib.crc32(read(at, PIECE), hashed)
    return digest | (hashed or 1) << 32  # 0 is "not read"


def digest_of_file(path: str, hashed: bool) -> int:
    """Return the digest of an image that is a file. Raises OSError."""
    if not hashed:
        return digest(os.stat(path).st_size, None)  # noqa: PTH116 (10^7 times)
    with open_regular(path) as file:
        descriptor = file.fileno()
        return digest(os.fstat(descriptor).st_size, lambda at, count: os.pread(descriptor, count, at))


def digests(count: int, of: Digest, others: Callable[[], Iterable[str]]) -> np.ndarray:
    """Return the digests of `count` images, uint64.

    others: paths of a few of the files, as in `patiently`.
    Raises MachineError where the storage is away and stays so.
    """
    found = np.full(count, UNREADABLE, dtype=np.uint64)
    hashed = np.zeros(count, dtype=bool)
    hashed[evenly_spread(count, HASHED)] = True

    def read(indices: Iterable[int]) -> list[int]:
        failed = []
        for index in indices:
            try:
                found[index] = of(index, bool(hashed[index]))
            except OSError:
                failed.append(index)
        return failed

    parts = (range(start, min(start + TOGETHER, count)) for start in range(0, count, TOGETHER))
    with ThreadPoolExecutor(READERS) as pool:
        failed = [index for part in pool.map(read, parts) for index in part]

    def again() -> None:
        nonlocal failed
        failed = read(failed)
        if failed:
            of(failed[0], bool(hashed[failed[0]]))  # raises

    if failed:
        try:
            patiently(again, others)
        except OSError:
            pass  # it is these files that cannot be read
    return found
