"""CIFAR-10 and Fashion-MNIST: found on disk, or downloaded by torchvision."""

from __future__ import annotations

import gzip
import http.client
import logging
import math
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torchvision import datasets

from dino_exp.data.content import Content
from dino_exp.data.digests import digest
from dino_exp.data.labeled import NameTable
from dino_exp.data.source import ArraySource, Splits
from dino_exp.errors import UserError
from dino_exp.paths import cache_root, expanded
from dino_exp.regular_file import MOST_BYTES, open_regular

log = logging.getLogger(__name__)

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # package dataset-fashion-mnist


def cifar10(*, root: str | None, channels: int) -> Splits:
    """Return 50,000 and 10,000 images of 32 x 32 in ten classes, from `root` (None: ~/.cache/dino_exp).

    Raises UserError where a download fails.
    """
    if channels != 3:
        raise UserError(f"data.channels = {channels}: CIFAR-10 has 3.")
    folder = _root(root)

    def read(download: bool) -> Splits:
        train, test = (datasets.CIFAR10(folder, train=t, download=download) for t in (True, False))
        return Splits(_cifar10_source(train, "train"), _cifar10_source(test, "test"))

    try:
        return read(download=False)
    except (RuntimeError, OSError):  # missing, or with a wrong check sum
        return _download(
            lambda: read(download=True),
            folder,
            f"put cifar-10-python.tar.gz, or its folder cifar-10-batches-py, into {folder}",
        )


def fashion_mnist(*, root: str | None, channels: int) -> Splits:
    """Return 60,000 and 10,000 images of 28 x 28 in ten classes; channels = 3 repeats the one channel.

    They are searched in `root` (None: ~/.cache/dino_exp) and in Debian's package dataset-fashion-mnist, or
    else downloaded into `root`.
    Raises UserError where the files are damaged or a download fails.
    """
    if channels not in (1, 3):
        raise UserError(f"data.channels = {channels}: Fashion-MNIST has 1; 3 repeats it.")
    folder = _root(root)
    raw = folder / "FashionMNIST" / "raw"  # where torchvision keeps it
    for found in (raw, folder, DEBIAN_FASHION_MNIST):
        if all(_idx_file(found, part, kind) for part in ("train", "t10k") for kind in ("images", "labels")):
            log.info("Fashion-MNIST from %s", found)
            return _fashion_mnist_splits(found, channels)

    def download() -> Splits:
        datasets.FashionMNIST(folder, download=True)
        return _fashion_mnist_splits(raw, channels)

    return _download(
        download,
        folder,
        "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
        f"t10k-labels-idx1-ubyte.gz into {folder}",
    )


def _root(root: str | None) -> Path:
    return cache_root() if root is None else expanded(root)


def _download(download: Callable[[], Splits], folder: Path, remedy: str) -> Splits:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):  # the processes of one run all come here
            return download()
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise UserError(
            f"data.root = {folder}: the data set is missing, and its download failed ({error}). "
            f"Without a network, {remedy}."
        ) from error


def _cifar10_source(data: datasets.CIFAR10, part: str) -> ArraySource:
    images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    labels = np.array(data.targets, dtype=np.int64)
    return ArraySource(f"cifar10 {part}", images, labels, data.classes, channels=3)


class IdxSource(ArraySource):
    """Images from files of the MNIST format, in which other sets are stored too."""

    def content(self) -> Content:
        """Return the images that were read."""
        pixels = self.images.flatten(1).numpy()
        found = [digest(len(image), partial(_part, image.data)) for image in pixels]
        names = [b"%d" % index for index in range(len(pixels))]
        return Content(NameTable.of(names), np.array(found, dtype=np.uint64), self.labels)


def _part(content: memoryview, start: int, count: int) -> memoryview:
    return content[start : start + count]


def _fashion_mnist_splits(folder: Path, channels: int) -> Splits:
    sources = []
    for part, title in (("train", "train"), ("t10k", "test")):
        images = _idx(_idx_file(folder, part, "images"), dimensions=3)
        labels = _idx(_idx_file(folder, part, "labels"), dimensions=1)
        if len(images) != len(labels):
            raise UserError(f"{folder}: {len(images):,} images and {len(labels):,} labels in {part}-*.")
        sources.append(
            IdxSource(
                f"fashion_mnist {title}",
                torch.from_numpy(images)[:, None],
                labels.astype(np.int64),
                datasets.FashionMNIST.classes,
                channels,
            )
        )
    return Splits(train=sources[0], test=sources[1])


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    dimensions = {"images": 3, "labels": 1}[kind]
    for ending in ("", ".gz"):
        path = folder / f"{part}-{kind}-idx{dimensions}-ubyte{ending}"
        if path.is_file():
            return path
    return None


def _idx(path: Path | None, dimensions: int) -> np.ndarray:
    """Read a file of the MNIST format: 0, 0, 8 (unsigned byte), dimensions, big-endian sizes, the bytes."""
    if path is None:
        raise FileNotFoundError("an IDX file is missing after the download")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open_regular(path) as file:
            content = file.read(MOST_BYTES)  # a few bytes could be unpacked to any number
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged or unreadable ({error}). Copy it again, or delete it.") from error
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) != start + math.prod(sizes):
        raise UserError(f"{path}: not an IDX file of {dimensions} dimensions, or truncated. Copy it again.")
    return np.frombuffer(bytearray(content[start:]), dtype=np.uint8).reshape(sizes)
