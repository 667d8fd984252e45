"""The embedded data set: drawn in seconds by `shape_images`, and kept in a file."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
import torch

from dino_exp.atomic import write_atomically
from dino_exp.data import shape_images
from dino_exp.data.file_ranges import FileRanges, stamps
from dino_exp.data.shape_images import BLOCK, CLASSES
from dino_exp.data.source import Shrink, Splits
from dino_exp.errors import UserError, in_words
from dino_exp.paths import cache_root, expanded

log = logging.getLogger(__name__)

SPLITS = ("train", "test")
HEADER = 128
"""Bytes before the array in the cache file: a multiple of 64, and four sizes fit in."""


def load(
    *, root: str | None, channels: int, image_size: int, train_size: int, test_size: int, seed: int
) -> Splits:
    """Draw the images of one seed, or read them from the cache in `root` (None: ~/.cache/dino_exp).

    A cache that cannot be written only costs memory, and a few seconds per start.
    """
    if channels not in (1, 3):
        raise UserError(f"data.channels = {channels}: shapes have 3 channels (RGB) or 1 (luminance).")
    folder = expanded(root) if root is not None else cache_root()
    train, test = (
        ShapesSource(folder, split, seed=seed, size=size, image_size=image_size, channels=channels)
        for split, size in zip(SPLITS, (train_size, test_size), strict=True)
    )
    return Splits(train, test)


class ShapesSource:
    """One split. A copy in another process opens the cache file again; no images are copied.

    A cache file that is removed or cut meanwhile is drawn again.
    """

    has_masks = True

    def __init__(
        self, folder: Path, split: str, *, seed: int, size: int, image_size: int, channels: int
    ) -> None:
        self.split, self._number = split, SPLITS.index(split)
        self.shape = (size, channels + 1, image_size, image_size)  # the last plane is the mask, 0 or 1
        self.seed = seed
        self.classes: list[str] | None = [kind.name for kind in CLASSES]
        labels = [shape_images.block_labels(seed, self._number, block) for block in range(-(-size // BLOCK))]
        self.labels: np.ndarray | None = np.concatenate(labels)[:size]

        content = repr((self.split, self.shape, self.seed, shape_images.settings()))
        digest = sha256(content.encode()).hexdigest()[:12]
        self._path = folder / f"shapes-{split}-{size}x{image_size}px-seed{seed}-{digest}.npy"
        self._images: FileRanges | torch.Tensor = self._cached()

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        return self._planes(index)[:-1].clone()

    def mask(self, index: int) -> torch.Tensor:
        return self._planes(index)[-1] != 0

    def name(self, index: int) -> str:
        return f"shapes {self.split} {index}"

    def fingerprint(self) -> str:
        return self._path.name

    def _planes(self, index: int) -> torch.Tensor:
        if isinstance(self._images, torch.Tensor):
            return self._images[index]
        shape = self.shape[1:]
        length = math.prod(shape)
        try:
            content = self._images.read(0, HEADER + index * length, length)
        except OSError:  # removed or cut under the run
            self._images = self._cached()
            return self._planes(index)
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)

    def _cached(self) -> FileRanges | torch.Tensor:
        """Return the cache file, which is written if missing, or else the images in memory."""
        try:
            if not _is_complete(self._path, self.shape):
                log.info("Drawing %s shapes (%s) into %s", f"{len(self):,}", self.split, self._path)
                _write(self._path, self.shape, self._drawn())
            return FileRanges(stamps([self._path]))
        except OSError as error:
            log.warning("Drawing the shapes into memory, because they are not kept: %s.", in_words(error))
            # A tensor, because DataLoader passes it to workers through shared memory.
            return torch.from_numpy(np.concatenate(list(self._drawn())))

    def _drawn(self) -> Iterator[np.ndarray]:
        size, planes, image_size, _ = self.shape
        for block in range(-(-size // BLOCK)):
            images = shape_images.block_images(
                self.seed, self._number, block, image_size=image_size, channels=planes - 1
            )
            yield images[: size - block * BLOCK]


# The cache file is a .npy with the array's CRC-32 after the array, which readers of .npy files ignore.


def _is_complete(path: Path, shape: tuple[int, ...]) -> bool:
    """Check that the file exists with the right shape and check sum: a power cut can leave zeros in it."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            header = np.lib.format.read_array_header_1_0(file)
            if (header, file.tell()) != ((shape, False, np.dtype(np.uint8)), HEADER):
                return False
            left, check = int(np.prod(shape)), 0
            while left > 0 and (part := file.read(min(left, 1 << 22))):
                check = zlib.crc32(part, check)
                left -= len(part)
            return left == 0 and file.read() == check.to_bytes(4, "little")
    except (FileNotFoundError, ValueError):
        return False


def _write(path: Path, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> None:
    """Write the cache file, not through a map, in which a full disk is a crash instead of an error."""

    def write(file: IO[bytes]) -> None:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        check = 0
        for part in parts:
            content = np.ascontiguousarray(part)
            file.write(content.data)
            check = zlib.crc32(content.data, check)
        file.write(check.to_bytes(4, "little"))
        # Another process may have been faster. Its file may be mapped already, so it stays.
        if _is_complete(path, shape):
            raise FileExistsError(path)

    with suppress(FileExistsError):
        write_atomically(path, write)
