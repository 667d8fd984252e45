"""Images that are decoded once, into one file of pixels that all processes and runs of a machine share."""

from __future__ import annotations

import errno
import logging
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from rich.progress import track

from dino_exp import machine
from dino_exp.atomic import write_atomically
from dino_exp.data.content import Content, ImagesWithContent
from dino_exp.data.file_ranges import FileRanges, stamps
from dino_exp.data.labeled import short_digest
from dino_exp.data.read_ahead import ahead
from dino_exp.data.source import CorruptImageError, Shrink
from dino_exp.data.storage import patiently
from dino_exp.errors import MachineError, UserError, in_words
from dino_exp.parallel import distributed
from dino_exp.paths import cache_root

log = logging.getLogger(__name__)

LAYOUT = 1
"""Version of the layout of the two files, in their names."""
LOG_SECONDS = 60
"""Seconds between two lines about the progress where there is no terminal for a bar."""
SAMPLE = 256
"""Images whose sizes tell how much room all will take."""


class PackedSource:
    """The images of a source, from their pixels in `cache_root()`, which are written there if missing.

    side: the shorter side of larger images becomes this many pixels, antialiased bicubic; None keeps them.

    Unreadable images stay so, with their reason. Each image has a check sum, because the file may be too
    large to be read entirely at every start; a damaged image is unreadable too.
    Raises UserError where the pixels do not fit on the disk.
    """

    has_masks = False

    def __init__(self, source: ImagesWithContent, side: int | None) -> None:
        self._source = source
        self._name = name = _name(source, side)
        pixels, index = (cache_root() / f"{name}{ending}" for ending in (".pixels", ".npz"))
        try:
            pixels.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(pixels.with_suffix(".lock")):  # the first process packs, the others wait
                found = _read_index(index, pixels)
                if found is None:
                    found = _pack(source, side, pixels)
                    if _name(source, side) != name:
                        raise UserError(
                            f"data.packed = true: images of {source.path} changed while they were packed. "
                            "Start again when they are complete."
                        )
                    write_atomically(index, lambda file: np.savez(file, **found._asdict()))
            self._bytes = FileRanges(stamps([pixels]))
        except OSError as error:
            raise UserError(
                f"data.packed = true: {in_words(error)}. Set XDG_CACHE_HOME to a folder that can be written, "
                "or data.packed=false."
            ) from error
        # Tensors, because DataLoader passes them to workers through shared memory.
        self._shapes, self._starts = torch.from_numpy(found.shapes), torch.from_numpy(found.starts)
        self._checks = torch.from_numpy(found.checks)
        self._reasons = dict(zip(found.unreadable.tolist(), found.reasons.tolist(), strict=True))

    @property
    def labels(self) -> np.ndarray | None:
        return self._source.labels

    @property
    def classes(self) -> list[str] | None:
        return self._source.classes

    def __len__(self) -> int:
        return len(self._shapes)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def content(self) -> Content:
        """Return the content of the images that were packed."""
        return self._source.content()

    def fingerprint(self) -> str:
        return self._name

    def mask(self, index: int) -> torch.Tensor:
        raise ValueError("stored images have no masks")

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        if index in self._reasons:
            raise CorruptImageError(self.name(index), self._reasons[index])
        shape = self._shapes[index].tolist()
        where = 0, int(self._starts[index]), shape[0] * shape[1] * shape[2]
        try:
            content = patiently(lambda: self._bytes.read(*where), self._bytes.some_paths)
        except OSError as error:
            if error.errno is None:  # not a fault of the image, which another start packs again
                path = self._bytes.files[0].path
                raise MachineError(f"{path}: {error}. The same command packs again and resumes.") from error
            raise CorruptImageError(self.name(index), error.strerror or str(error)) from error
        if zlib.crc32(content) != int(self._checks[index]):
            damaged = self._bytes.files[0].path
            raise CorruptImageError(
                self.name(index), f"its pixels in {damaged} are damaged; delete that file"
            )
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def _name(source: ImagesWithContent, side: int | None) -> str:
    return f"packed-{short_digest(LAYOUT, source.fingerprint(), side)}"


class _Index(NamedTuple):
    shapes: np.ndarray  # int32 (N, 3): C, H, W; zeros where unreadable
    starts: np.ndarray  # int64 (N,): first byte of the image in the file, which holds C x H x W bytes of each
    checks: np.ndarray  # int64 (N,): CRC-32
    unreadable: np.ndarray  # int64 (M,): indices
    reasons: np.ndarray  # text (M,)


def _read_index(index: Path, pixels: Path) -> _Index | None:
    """Return the index of the packed images; None where a file is missing or incomplete."""
    try:
        # opened here, because NumPy leaves the file of a damaged archive open
        with index.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = _Index(**arrays)
        is_complete = pixels.stat().st_size == found.shapes.astype(np.int64).prod(axis=1).sum()
        return found if is_complete else None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _pack(source: ImagesWithContent, side: int | None, path: Path) -> _Index:
    count = len(source)
    shapes, checks = np.zeros((count, 3), dtype=np.int32), np.zeros(count, dtype=np.int64)
    reasons: dict[int, str] = {}

    def read(index: int) -> torch.Tensor | CorruptImageError:
        try:
            return _resized(source.read(index), side)
        except CorruptImageError as error:
            return error

    needed = _bytes_needed(read, count)
    if shutil.disk_usage(path.parent).free < needed:
        raise _disk_too_small(path.parent, needed)
    log.info("Packing %s images (about %s) into %s", f"{count:,}", _size(needed), path)
    began = time.monotonic()

    def write(file: IO[bytes]) -> None:
        # decoders let go of the interpreter, so threads are enough
        images = ahead(read, range(count), machine.cores(), at_once=2 * machine.cores())
        console, logged = distributed.console_for_a_run(), began
        quiet = not console.is_interactive
        shown = track(images, "packing", total=count, console=console, transient=True, disable=quiet)
        for index, image in enumerate(shown):
            if quiet and time.monotonic() - logged > LOG_SECONDS:
                logged = time.monotonic()
                log.info("Packed %s of %s images", f"{index:,}", f"{count:,}")
            if isinstance(image, CorruptImageError):
                reasons[index] = image.reason
                continue
            content = image.contiguous().numpy()
            file.write(content.data)
            shapes[index], checks[index] = image.shape, zlib.crc32(content.data)

    try:
        write_atomically(path, write)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_too_small(path.parent, needed) from error
        raise
    log.info("Packed in %.0f s, %s unreadable", time.monotonic() - began, f"{len(reasons):,}")
    lengths = shapes.astype(np.int64).prod(axis=1)
    return _Index(
        shapes,
        np.cumsum(lengths) - lengths,
        checks,
        np.array(list(reasons), dtype=np.int64),
        np.array(list(reasons.values()), dtype=str),
    )


def _resized(image: torch.Tensor, side: int | None) -> torch.Tensor:
    if side is None or min(image.shape[1:]) <= side:
        return image
    from torchvision.transforms.v2 import InterpolationMode, functional  # four seconds, which few need

    return functional.resize(image, [side], InterpolationMode.BICUBIC, antialias=True)


def _bytes_needed(read: Callable[[int], torch.Tensor | CorruptImageError], count: int) -> int:
    """Estimate the bytes of all pixels from those of some images."""
    some = range(0, count, -(-count // SAMPLE))
    sizes = [image.numel() for image in map(read, some) if isinstance(image, torch.Tensor)]
    return sum(sizes) * count // len(some)


def _disk_too_small(folder: Path, needed: int) -> UserError:
    return UserError(
        f"data.packed = true: the pixels take about {_size(needed)}, and {folder} has "
        f"{_size(shutil.disk_usage(folder).free)} left. Make room, set XDG_CACHE_HOME to a larger disk, or "
        "choose a smaller data.packed_side."
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
