"""The values of an image as they are stored: any depth, any number of channels, before they become bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dino_exp.data import deep_files, dicom_files, tiff_files
from dino_exp.data.pillow_files import UnidentifiedError, errors_in_words, open_image
from dino_exp.data.undecodable import UndecodableError, UnsuitableError, check_size, first_line

__all__ = ["StoredValues", "UndecodableError", "UnsuitableError", "pillow_values", "stored_values"]


@dataclass(frozen=True)
class StoredValues:
    """One decoded image.

    values: (H, W, channels) in the type that the file has: uint8, uint16, int16, float32, ...; palettes are
    resolved, bilevel images are 0 and 255, and fewer than 8 bits per value are scaled to 8.
    format: JPEG, PNG, TIFF, NPY, DICOM, ...
    bits: bits per value as stored: 8, 12 (if the file says so), 16, 32.
    """

    values: np.ndarray
    format: str
    bits: int


def stored_values(content: bytes, *, keep_cmyk: bool = False, first_page: bool = False) -> StoredValues:
    """Decode the bytes of one file without changing a value.

    Of an animation and of pages the first is read; pages that the file itself calls channels (OME-TIFF and
    ImageJ) are channels. DICOM values are rescaled as the file says (CT: Hounsfield units), and those of
    MONOCHROME1 are inverted, so that more is brighter. Arrays are (H, W) or (H, W, channels).

    Args:
        keep_cmyk: CMYK stays four channels instead of becoming RGB.
        first_page: channels in pages are not read, only the first page.

    Raises:
        UndecodableError: with the reason, without the name of the file.
        UnsuitableError: likewise, for a file that is whole and needs another library.
    """
    if not content:
        raise UndecodableError("the file is empty")
    with errors_in_words():
        if content.startswith(b"\x93NUMPY"):
            return _stored(_npy(content), "NPY")
        if dicom_files.is_dicom(content):
            return StoredValues(*dicom_files.values_and_bits(content))
        if deep_files.is_deep_pnm(content):
            return _stored(deep_files.pnm(content), "PPM", deep_files.bits_of_pnm(content))
        is_tiff = tiff_files.is_tiff(content)
        try:
            image = open_image(io.BytesIO(content))  # reads the header alone, 0.02 ms
        except UnidentifiedError:
            if not is_tiff:
                raise
            image = None
        if image is None or (is_tiff and not tiff_files.is_for_pillow(image, first_page)):
            return _stored(tiff_files.values(content, first_page), "TIFF")
        return pillow_values(image, content, keep_cmyk)


def pillow_values(image: Image.Image, content: bytes, keep_cmyk: bool = False) -> StoredValues:
    """Decode an image that Pillow has opened from the bytes of a file."""
    check_size(image.height, image.width)
    kind = str(image.format)
    deep = deep_files.values_and_bits(image, content)
    if deep is not None:
        return _stored(deep[0], kind, deep[1])
    mode = image.mode
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or mode == "PA" else "RGB")
    elif mode == "1":
        image = image.convert("L")
    elif mode in ("RGBa", "La"):
        image = image.convert(mode.upper())
    elif mode in ("LAB", "HSV", "YCbCr", "RGBX") or (mode == "CMYK" and not keep_cmyk):
        image = image.convert("RGB")
    return _stored(np.asarray(image), kind)


def _stored(values: np.ndarray, kind: str, bits: int | None = None) -> StoredValues:
    values = values if values.ndim == 3 else values[:, :, None]
    return StoredValues(values, kind, bits or 8 * values.dtype.itemsize)


def _npy(content: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # damaged headers raise many kinds
        raise UndecodableError(f"damaged or truncated .npy file ({first_line(error)})") from error
    if array.dtype.kind not in "buif" or array.ndim not in (2, 3) or array.size == 0:
        raise UndecodableError(
            f"a .npy file with {array.dtype} {array.shape}; real numbers of shape (H, W) or "
            "(H, W, channels) are required"
        )
    check_size(*array.shape[:2])
    if array.dtype == np.bool_:
        return array * np.uint8(255)
    return array.astype(array.dtype.newbyteorder("="), copy=False)
