"""The image formats that are read: their endings, their first bytes, and what reads them."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import NamedTuple

from PIL import features


class ImageFormat(NamedTuple):
    """A format by Pillow's name, or NPY or DICOM."""

    name: str
    endings: tuple[str, ...]
    start: bytes
    """Regular expression for the first bytes."""
    is_read: bool = True
    remedy: str = ""
    """What to do where it is not read."""


def _tell_pillow_of_heif() -> bool:
    """Return whether the extra `heif` is installed, by which Pillow then reads HEIF."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


ALL = (
    ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff"),
    ImageFormat("PNG", (".png",), rb"\x89PNG\r\n\x1a\n"),
    ImageFormat("WEBP", (".webp",), rb"RIFF....WEBP"),
    ImageFormat("BMP", (".bmp",), rb"BM....\0\0\0\0"),
    ImageFormat("GIF", (".gif",), rb"GIF8[79]a"),
    ImageFormat("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]"),
    ImageFormat("PPM", (".ppm", ".pgm", ".pbm", ".pnm"), rb"P[1-6]\s[\d#]"),
    ImageFormat("NPY", (".npy",), rb"\x93NUMPY"),
    ImageFormat(
        "AVIF",
        (".avif",),
        rb"....ftyp(avi[fs]|mif1)",
        features.check("avif") is True,
        "pip install -U pillow",
    ),
    ImageFormat(
        "JPEG2000",
        (".jp2", ".j2k", ".jpx"),
        rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
        features.check("jpg_2000") is True,
        "pip install -U pillow",
    ),
    ImageFormat(
        "HEIF",
        (".heic", ".heif", ".hif"),
        rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
        _tell_pillow_of_heif(),
        "pip install 'dino-exp[heif]'",
    ),
    ImageFormat(
        "DICOM",
        (".dcm", ".dicom"),
        rb".{128}DICM",
        find_spec("pydicom") is not None,
        "pip install 'dino-exp[dicom]'",
    ),
)
FORMATS = tuple(each.name for each in ALL if each.is_read and each.name not in ("NPY", "DICOM"))
"""Formats that Pillow may open; some of its other readers start programs (EPS: Ghostscript)."""
IMAGE_SUFFIXES = frozenset(ending for each in ALL if each.is_read for ending in each.endings)
"""Endings of images, in lower case."""
READERS = {ending: each.remedy for each in ALL if not each.is_read for ending in each.endings} | {
    ".tar": "data=webdataset",
    ".parquet": "data=huggingface",
    ".arrow": "data=huggingface",
}
"""By ending: what would read files that are not read here."""
_START = re.compile(b"|".join(b"(?:" + each.start + b")" for each in ALL if each.is_read), re.DOTALL)
START_BYTES = 132
"""Bytes at the start of a file that tell its format."""


def starts_as_image(content: bytes) -> bool:
    """Return whether a file with these first bytes is an image in a format that is read."""
    return _START.match(content) is not None


def known_endings() -> str:
    """Return the endings of images, for messages."""
    return " ".join(sorted(IMAGE_SUFFIXES))
