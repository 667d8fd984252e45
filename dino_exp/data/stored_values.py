"""The values of an image as they are stored: any depth, any number of channels, before they become bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class StoredValues:
    """One decoded image.

    values: (H, W, channels) in the type that the file has: uint8, uint16, int16, float32, ...; palettes are
        resolved, and bilevel images are 0 and 255.
    format: JPEG, PNG, TIFF, NPY, ...
    bits: bits per value as stored: 8, 12 (if the file says so), 16, 32.
    """

    values: np.ndarray
    format: str
    bits: int


class UndecodableError(Exception):
    """Bytes that cannot be read as an image, with the reason."""


def stored_values(content: bytes) -> StoredValues:
    """Decode the bytes of one file without changing a value.

    Raises UndecodableError with the reason, without the name of the file.
    """
    try:
        if content.startswith(b"\x93NUMPY"):
            values, kind = np.load(io.BytesIO(content), allow_pickle=False), "NPY"
        else:
            with Image.open(io.BytesIO(content)) as image:
                values, kind = np.asarray(image), str(image.format)
    except Exception as error:  # decoders raise every kind of error on damaged bytes
        raise UndecodableError(str(error)) from error
    values = values if values.ndim == 3 else values[:, :, None]
    return StoredValues(values, kind, values.dtype.itemsize * 8)
