"""Image files opened by Pillow: with the readers that are allowed, and without its warnings."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image, ImageFile

from dino_exp.data import png_chunks
from dino_exp.data.image_formats import FORMATS
from dino_exp.data.undecodable import TOO_LARGE, UndecodableError, first_line
from dino_exp.regular_file import MOST_BYTES, open_regular

# Each process would print what Pillow thinks of a file's metadata; what it cannot read is an error anyway.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

# Bytes that Pillow reads and returns at once; its own 64 KiB cost time for joining the pieces.
ImageFile.MAXBLOCK = 2**20


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


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Raise UndecodableError for whatever decoders raise."""
    try:
        yield
    except UndecodableError:
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableError(TOO_LARGE) from error
    except UnidentifiedError as error:
        raise UndecodableError(str(error)) from error
    except Exception as error:  # they raise every kind of error on damaged bytes
        raise UndecodableError(f"damaged or truncated ({first_line(error)})") from error
