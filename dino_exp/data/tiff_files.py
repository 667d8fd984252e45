"""TIFF files of any depth and any number of channels, by the extra `tiff`."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from PIL import Image

from dino_exp.data.deep_files import CODECS as NEEDED
from dino_exp.data.deep_files import tiff_tags
from dino_exp.data.undecodable import UndecodableError, UnsuitableError, check_size, first_line

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it cannot read is an error anyway


def is_tiff(content: bytes) -> bool:
    """Return whether a file begins as TIFF or BigTIFF."""
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_for_pillow(image: Image.Image, first_page: bool) -> bool:
    """Return whether Pillow reads every bit and every channel of a file that it has opened.

    first_page: channels in pages do not count.
    """
    tags = tiff_tags(image)
    bits = tags.get(258, (1,))
    if 2 in tags.get(339, (1,)) and max(bits) == 8:  # with a sign, which Pillow ignores
        return False
    samples, channels = tags.get(277, 1), len(image.getbands())
    if samples > channels and (not first_page or samples > 2 > channels):  # of which Pillow drops some
        return False
    if not first_page and _has_channels_in_pages(str(tags.get(270, ""))):
        return False
    # a type that Pillow widens: I and F have 32 bits
    return max(bits) <= 8 or (len(bits) == 1 and bits[0] in (12, 16, 32) and image.mode[0] in "IF")


def values(content: bytes, first_page: bool) -> np.ndarray:
    """Return the values (H, W, C) of the first page, or of the first pages that are called channels."""
    try:
        import tifffile
    except ImportError as error:
        raise UnsuitableError(f"a TIFF file of a kind that only tifffile reads: {NEEDED}") from error
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            pages = [file.pages[0]] if first_page else _channels(file)
            arrays = [_page(page, len(pages)) for page in pages]
    except UndecodableError:
        raise
    except Exception as error:  # damaged files raise many kinds
        reason = first_line(error)
        if "imagecodecs" in reason:
            raise UnsuitableError(f"compressed in a way that needs imagecodecs: {NEEDED}") from error
        raise UndecodableError(
            f"a TIFF file that is damaged, or of a kind that is not known ({reason})"
        ) from error
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2)


def _has_channels_in_pages(description: str) -> bool:
    return (description.startswith("ImageJ=") and "channels=" in description) or "<OME" in description[:2000]


def _channels(file: Any) -> list[Any]:
    """Return the pages of all channels, at the first place of every other axis (depth, time)."""
    if not (file.is_imagej or file.is_ome):
        return [file.pages[0]]
    series = file.series[0]
    leading = len(series.shape) - len(series.keyframe.shape)
    axes, shape = series.axes[:leading], series.shape[:leading]
    first = [range(length) if axis == "C" else (0,) for axis, length in zip(axes, shape, strict=True)]
    numbers = np.ravel_multi_index(np.meshgrid(*first, indexing="ij"), shape).ravel() if shape else [0]
    return [series.pages[int(number)] for number in numbers]


def _page(page: Any, pages: int) -> np.ndarray:
    """Return the values (H, W, C) of a page."""
    page, frame = page.keyframe, page  # a frame is a page whose tags are those of another
    if page.axes not in ("YX", "YXS", "SYX"):
        raise UndecodableError(f"a TIFF file whose pages have the axes {page.axes}; images are required")
    channels = page.samplesperpixel
    check_size(page.imagelength, page.imagewidth, channels * page.dtype.itemsize * pages)
    array: np.ndarray = frame.asarray(maxworkers=1)
    if page.axes == "SYX":
        return np.ascontiguousarray(array.transpose(1, 2, 0))
    return array if page.axes == "YXS" else array[:, :, None]
