"""The interface of a set of images, and the reading of one image file as a tensor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from dino_exp.data.decoding import Decoding, Shrink, decode
from dino_exp.data.storage import patiently
from dino_exp.data.undecodable import DeepError, UndecodableError, UnsuitableError
from dino_exp.regular_file import read_regular


class CorruptImageError(Exception):
    """An image that cannot be read, with its `name` and the `reason`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class UnsuitableImageError(CorruptImageError):
    """An image that is whole, but needs other settings or another library, which the reason says.

    deep: set if what it needs is a range.
    """

    def __init__(self, name: str, reason: str, deep: DeepError | None = None) -> None:
        super().__init__(name, reason)
        self.deep = deep

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.reason, self.deep)


class ImageSource(Protocol):
    """Images by index. A source has no open files, so that it is sent to worker processes cheaply."""

    @property
    def labels(self) -> np.ndarray | None:
        """int64 (N,), or None for images without labels."""
        ...

    @property
    def classes(self) -> list[str] | None:
        """The name of each label, or None for images without labels."""
        ...

    @property
    def has_masks(self) -> bool:
        """True if `mask` can be called."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        """Return a copy of an image, uint8 (C, H, W). Raises CorruptImageError.

        Where decoding to 1/2, 1/4 or 1/8 of the size is less work (JPEG), H and W are those of the image
        divided by the factor that `shrink` returns, rounded up. Otherwise it is not called.
        """
        ...

    def name(self, index: int) -> str:
        """Return a name of the image for people: its path, or "shapes test 17"."""
        ...

    def mask(self, index: int) -> torch.Tensor:
        """Return the mask of the object, bool (H, W), true on it; only where has_masks."""
        ...

    def fingerprint(self) -> str:
        """Return a text that changes with any image or how it is decoded, to name files made from them."""
        ...


@dataclass
class Splits:
    """The images to train on, the held-out ones or None, and the labeled ones of `data.probe` or None."""

    train: ImageSource
    test: ImageSource | None
    probe: Splits | None = None

    @property
    def evaluated(self) -> Splits:
        """The images that features are judged by: those of the probe set, if there is one."""
        return self.probe or self


@dataclass(eq=False)
class ArraySource:
    """Images of one size in memory.

    images: uint8 (N, C, H, W). A tensor, because DataLoader passes tensors to workers through shared memory,
    while an array would be copied into each of them.
    channels: C, or any number where the images have one channel, which is then repeated.
    """

    title: str
    images: torch.Tensor
    labels: np.ndarray | None
    classes: list[str] | None
    channels: int
    has_masks = False

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        return self.images[index].expand(self.channels, -1, -1).clone()

    def name(self, index: int) -> str:
        return f"{self.title} {index}"

    def mask(self, index: int) -> torch.Tensor:
        raise ValueError(f"{self.title} has no masks")

    def fingerprint(self) -> str:
        pixels = self.images.numpy().tobytes()
        return f"{hashlib.sha256(pixels).hexdigest()[:16]}x{self.channels}"


def read_image(
    path: str | os.PathLike[str],
    decoding: Decoding,
    *,
    shrink: Shrink | None = None,
    others: Callable[[], Iterable[str]] = tuple,
) -> torch.Tensor:
    """Decode one file to uint8 (C, H, W); arguments and result as in `decode_image`.

    others: as in `patiently`.
    Raises CorruptImageError with the path and the reason.
    """
    return decode_image(read_encoded(path, others), os.fspath(path), decoding, shrink=shrink)


def read_encoded(path: str | os.PathLike[str], others: Callable[[], Iterable[str]] = tuple) -> bytes:
    """Return the bytes of an image file. Raises CorruptImageError with the path and the reason."""
    try:
        return patiently(lambda: read_regular(path), others)
    except OSError as error:
        raise CorruptImageError(os.fspath(path), error.strerror or str(error)) from error


def decode_image(
    content: bytes, name: str, decoding: Decoding, *, shrink: Shrink | None = None
) -> torch.Tensor:
    """Decode the bytes of one file to uint8 (C, H, W), laid out pixel by pixel.

    channels = 3 gives RGB and 1 luminance, from grayscale, palette and CMYK files too; an alpha channel is
    dropped. For any other number the file must have that many channels: RGBA, gray with alpha, or the bands
    of a TIFF file or an array. With `bands` these channels of the file are taken, as they are. Values of more
    than 8 bits need a `range`. The EXIF orientation is ignored, as in the released code. Of an animation the
    first frame is read.

    Args:
        name: a name of the image for people, for the error.
        shrink: for a JPEG, chooses the factor by which it is scaled down.

    Raises CorruptImageError with the name and the reason, which is an UnsuitableImageError where other
    settings would read the image.
    """
    try:
        return decode(content, decoding, shrink)
    except DeepError as error:
        raise UnsuitableImageError(name, str(error), error) from error
    except UnsuitableError as error:
        raise UnsuitableImageError(name, str(error)) from error
    except UndecodableError as error:
        raise CorruptImageError(name, str(error)) from error
