"""The interface of a set of images, and the decoding of one image file to a tensor."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from PIL import Image, ImageFile

from dino_exp.data import depth, png_chunks
from dino_exp.data.decoding import Decoding
from dino_exp.data.image_formats import FORMATS
from dino_exp.data.storage import patiently
from dino_exp.regular_file import MOST_BYTES, open_regular, read_regular

# Each process would print what Pillow thinks of a file's metadata; what it cannot read is an error anyway.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

try:
    import simplejpeg
except ImportError:  # no wheel for this Python: Pillow reads JPEG to the same values, more slowly
    simplejpeg = None

# Bytes that Pillow reads and returns at once; its own 64 KiB cost time for joining the pieces.
ImageFile.MAXBLOCK = 2**20

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is decoded: Pillow refuses larger ones as decompression bombs.

A 20,000 x 20,000 image would take 1.2 GB in each worker, for crops of a few hundred pixels. It counts as
unreadable, so that one such file neither ends a run nor exhausts the memory."""

TOO_LARGE = f"more than {MAX_PIXELS:,} pixels; scale it down first"


Shrink = Callable[[int, int], int]
"""A function from an image's height and width to the factor by which it is scaled down while it is decoded:
1, 2, 4 or 8, and no more than its shorter side."""


class CorruptImageError(Exception):
    """An image that cannot be read, with its `name` and the `reason`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


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


class UnidentifiedError(OSError):
    """A file whose header Pillow cannot read, in words."""


def open_image(file: IO[bytes], formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Open an image by Pillow, which reads the header alone; no other reader of Pillow may see a file."""
    start = file.read(16)
    file.seek(0)
    if start.startswith(png_chunks.SIGNATURE):
        file = io.BytesIO(png_chunks.only_pixels(file.read(MOST_BYTES)))
    try:
        return Image.open(file, formats=formats)
    except Image.UnidentifiedImageError as error:  # which names the open file and not the path
        accepts = {kind: Image.OPEN[kind][1] for kind in formats if kind in Image.OPEN}
        kind = next((kind for kind, accept in accepts.items() if accept and accept(start)), None)
        raise UnidentifiedError(
            f"a {kind} file whose header is damaged, or of a kind that is not known"
            if kind
            else f"not an image in a known format ({', '.join(formats)})"
        ) from error


@contextmanager
def opened_image(path: Path, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """Open an image file by Pillow, as `open_image` does. Raises OSError for a pipe or a device."""
    with open_regular(path) as file, open_image(file, formats) as image:
        yield image


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

    channels = 3 gives RGB and 1 luminance, from grayscale, palette, CMYK and 16-bit files too; an alpha
    channel is dropped. For any other number the file must have that many channels: RGBA, gray with alpha,
    or a .npy array (H, W, channels) of uint8 or uint16. 16-bit values keep their upper 8 bits. The EXIF
    orientation is ignored, as in the released code. Of an animation the first frame is read.

    Args:
        name: a name of the image for people, for the error.
        shrink: for a JPEG, chooses the factor by which it is scaled down.

    Raises CorruptImageError with the name and the reason.
    """
    try:
        return _decode(content, decoding, shrink)
    except _DecodeError as error:
        raise CorruptImageError(name, str(error)) from error


class _DecodeError(Exception):
    pass


def _decode(content: bytes, decoding: Decoding, shrink: Shrink | None) -> torch.Tensor:
    channels, backend = decoding.channels, decoding.backend
    if not content:
        raise _DecodeError("the file is empty")
    if content.startswith(b"\x93NUMPY"):
        return _select_channels(_npy(content), channels)
    try:
        image = open_image(io.BytesIO(content))  # reads the header alone, 0.02 ms
        _check_size(image.width, image.height)
        if image.format == "JPEG" and channels in (1, 3):
            factor = 1 if shrink is None else shrink(image.height, image.width)
            if factor > 1:
                image.draft(image.mode, (image.width // factor, image.height // factor))
            elif backend == "fast" and channels == 3 and image.mode in ("RGB", "L"):
                decoded = _decode_jpeg(content)
                if decoded is not None:
                    return decoded
        return _select_channels(_pixels(image, channels), channels)
    except _DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise _DecodeError(TOO_LARGE) from error
    except UnidentifiedError as error:
        raise _DecodeError(str(error)) from error
    except Exception as error:  # decoders raise every kind of error on damaged bytes
        raise _DecodeError(f"damaged or truncated ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _decode_jpeg(content: bytes) -> torch.Tensor | None:
    """Decode with libjpeg-turbo, to the same values as Pillow; None where that fails and Pillow is to try."""
    if simplejpeg is None:
        return None
    try:
        return torch.from_numpy(simplejpeg.decode_jpeg(content, "RGB")).permute(2, 0, 1)
    except ValueError:  # damaged, or a kind that only Pillow knows
        return None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _DecodeError(TOO_LARGE)


def _npy(content: bytes) -> np.ndarray:
    """Decode a .npy file to uint8 (H, W, channels of the file)."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # damaged headers raise many kinds
        raise _DecodeError(f"damaged or truncated .npy file ({_first_line(error)})") from error
    if (
        array.dtype.newbyteorder("=") not in (np.uint8, np.uint16)
        or array.ndim not in (2, 3)
        or array.size == 0
    ):
        raise _DecodeError(
            f"a .npy file with {array.dtype} {array.shape}; uint8 or uint16 of shape (H, W) or "
            "(H, W, channels) is required"
        )
    _check_size(array.shape[1], array.shape[0])
    if array.ndim == 2:
        array = array[:, :, None]
    return array if array.dtype == np.uint8 else _upper_byte(array)


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Decode to uint8 (H, W, channels of the file), palettes resolved; CMYK stays for 4 channels."""
    # with Pillow's word for the values in the file, such as RGB;16B
    mode, stored = image.mode, str(getattr(image, "tile", [])[:1])
    is_deep = ";16" in stored and image.format in ("PNG", "TIFF")  # Pillow drops the lower bits of colors
    if mode.startswith("I"):  # 16 bits, which some formats deliver as 32
        values = np.asarray(image)
        if ";32" in stored or values.min() < 0 or values.max() > 65535:
            raise _DecodeError("values of 32 bits or below 0; 8 or 16 bits without a sign are required")
        return _upper_byte(values.astype(np.uint16))[:, :, None]
    if mode == "F":
        raise _DecodeError("a floating-point image, whose range is unknown; 8 or 16 bits are required")
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or mode == "PA" else "RGB")
    elif mode == "1":
        image = image.convert("L")
    elif mode in ("RGBa", "La"):
        image = image.convert(mode.upper())
    elif mode in ("LAB", "HSV", "YCbCr", "RGBX") or (mode == "CMYK" and channels in (1, 3)):
        image = image.convert("RGB")
    values = np.asarray(image)
    if is_deep:
        values = depth.note(values)
    return values if values.ndim == 3 else values[:, :, None]


def _upper_byte(values: np.ndarray) -> np.ndarray:
    return depth.note((values >> 8).astype(np.uint8))


def _select_channels(values: np.ndarray, channels: int) -> torch.Tensor:
    """Convert (H, W, channels of the file) to (channels, H, W)."""
    found = values.shape[2]
    if found == channels and channels not in (1, 3):
        pass
    elif channels == 3 and found in (1, 2):
        values = np.repeat(values[:, :, :1], 3, axis=2)
    elif channels == 3 and found in (3, 4):
        values = values[:, :, :3]
    elif channels == 1 and found in (1, 2):
        values = values[:, :, :1]
    elif channels == 1 and found in (3, 4):
        values = np.asarray(Image.fromarray(np.ascontiguousarray(values[:, :, :3])).convert("L"))[:, :, None]
    else:
        raise _DecodeError(f"has {found} channels, but data.channels is {channels}")
    return torch.from_numpy(np.require(values, requirements=["C", "W"])).permute(2, 0, 1)
