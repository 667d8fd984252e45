"""Images of more than 8 bits per value in the formats of photographs, where Pillow alone would drop bits."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from PIL import Image

from dino_exp.data.pillow_files import open_image
from dino_exp.data.undecodable import UndecodableError, UnsuitableError, check_size

CODECS = "pip install 'dino-exp[tiff]'"
_PNM = re.compile(rb"P([2356])" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s")
"""Kind, width, height and largest value of a PGM or PPM file."""
_CODESTREAM = b"\xff\x4f\xff\x51"


def values_and_bits(image: Image.Image, content: bytes) -> tuple[np.ndarray, int] | None:
    """Return values (H, W) or (H, W, C) and bits of a deep image; None if Pillow reads it as it is.

    Args:
        image: opened by Pillow from `content`, not read yet.
    """
    if image.format == "PNG" and ";16" in _raw_mode(image):
        return _png(image, content), 16
    if image.format == "JPEG2000":
        return _jpeg2000(image, content)
    if image.format == "AVIF":
        return _avif(content)
    if image.format == "HEIF":
        return _heif(image, content)
    if image.mode.startswith("I;16"):  # TIFF
        return np.asarray(image).astype(np.uint16, copy=False), _tiff_bits(image)
    if image.mode in ("I", "F"):
        return np.asarray(image).astype(_tiff_type(image), copy=False), _tiff_bits(image)
    return None


def is_deep_pnm(content: bytes) -> bool:
    """Return whether a file is a PGM or PPM with values above 255, which Pillow scales to its own range."""
    return bits_of_pnm(content) > 8


def bits_of_pnm(content: bytes) -> int:
    """Return the bits of the largest value that a PGM or PPM file states; 0 for other files."""
    header = _PNM.match(content[:4096])
    return int(header[4]).bit_length() if header else 0


def pnm(content: bytes) -> np.ndarray:
    """Return the values uint16 (H, W, C) of a PGM or PPM file of more than 8 bits."""
    header = _PNM.match(content[:4096])
    assert header
    kind, width, height, largest = (int(each) for each in header.groups())
    channels = 3 if kind in (3, 6) else 1
    check_size(height, width, 2 * channels)
    count = height * width * channels
    if largest > 65535:
        raise UndecodableError(f"its largest value is {largest}; at most 65535 is possible")
    if kind > 3:
        values = np.frombuffer(content, ">u2", count, header.end())
    else:
        values = np.array(content[header.end() :].split(maxsplit=count)[:count], dtype=np.int64)
    if values.size != count or count == 0 or values.max() > largest:
        raise UndecodableError("damaged or truncated")
    return values.astype(np.uint16).reshape(height, width, channels)


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's word for the values in the file, such as RGB;16B."""
    tiles: Any = getattr(image, "tile", [])
    return str(tiles[0][3]) if tiles else ""


def _png(image: Image.Image, content: bytes) -> np.ndarray:
    """Read upper and lower bytes of colors by themselves, because Pillow has no mode for both."""
    raw_mode = _raw_mode(image)
    if raw_mode == "LA;16B":  # four bytes, as RGBA has
        return np.ascontiguousarray(_as_raw(image, "RGBA")).view(">u2").astype(np.uint16)
    if raw_mode in ("RGB;16B", "RGBA;16B"):
        upper = _as_raw(image, raw_mode).astype(np.uint16)
        lower = _as_raw(open_image(io.BytesIO(content)), f"{raw_mode[:-1]}L")
        return upper << 8 | lower
    return np.asarray(image).astype(np.uint16, copy=False)


def _as_raw(image: Image.Image, raw_mode: str) -> np.ndarray:
    """Decode an image with another of Pillow's words for the values in the file."""
    plain: Any = image
    plain.tile = [tile._replace(args=raw_mode) for tile in plain.tile]
    return np.asarray(image)


def _jpeg2000(image: Image.Image, content: bytes) -> tuple[np.ndarray, int] | None:
    start = content.find(_CODESTREAM)
    if start < 0:
        return None
    components = int.from_bytes(content[start + 40 : start + 42], "big")
    depths = content[start + 42 : start + 42 + 3 * components : 3]
    bits = max((depth & 127) + 1 for depth in depths)
    if bits <= 8:
        return None
    if image.mode.startswith("I;16") and bits <= 16 and depths[0] < 128:  # Pillow has scaled it to 16 bits
        return np.asarray(image).astype(np.uint16) >> (16 - bits), bits
    return _codecs(f"a JPEG 2000 file with {bits} bits per value").jpeg2k_decode(content), bits


def _avif(content: bytes) -> tuple[np.ndarray, int] | None:
    start = content.find(b"av1C", 0, 2**16)
    flags = content[start + 6] if start >= 0 else 0
    bits = (12 if flags & 32 else 10) if flags & 64 else 8
    if bits == 8:
        return None
    return _codecs(f"an AVIF file with {bits} bits per value").avif_decode(content), bits


def _codecs(what: str) -> Any:
    try:
        import imagecodecs
    except ImportError as error:
        raise UnsuitableError(f"{what}, of which Pillow keeps 8; {CODECS} reads all") from error
    return imagecodecs


def _heif(image: Image.Image, content: bytes) -> tuple[np.ndarray, int] | None:
    bits = int(image.info.get("bit_depth", 8))
    if bits <= 8:
        return None
    import pillow_heif

    deep = pillow_heif.open_heif(io.BytesIO(content), convert_hdr_to_8bit=False, hdr_to_16bit=False)
    return np.asarray(deep), bits


def _tiff_bits(image: Image.Image) -> int:
    return max(tiff_tags(image).get(258, (32,)))


def _tiff_type(image: Image.Image) -> np.dtype[Any]:
    """Return the type of the values in a TIFF file, which Pillow gives as 32 bits."""
    kind = {1: "u", 2: "i"}.get(tiff_tags(image).get(339, (1,))[0], "u")
    return np.dtype(f"{'f' if image.mode == 'F' else kind}{_tiff_bits(image) // 8}")


def tiff_tags(image: Image.Image) -> Any:
    """Return the tags of a TIFF file by number; none of other files."""
    return getattr(image, "tag_v2", {})
