"""Image files of many formats, depths and numbers of channels."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pydicom
import tifffile
from PIL import Image

RED, GREEN = (200, 40, 10), (20, 180, 60)


def halves(left: tuple[int, ...] = RED, right: tuple[int, ...] = GREEN, mode: str = "RGB") -> Image.Image:
    """Return an image with an edge on block borders for JPEG."""
    image = Image.new(mode, (32, 16), left if len(left) > 1 else left[0])
    image.paste(right if len(right) > 1 else right[0], (16, 0, 32, 16))
    return image


IMAGE = halves()
PIXELS = np.asarray(IMAGE)
TWELVE = PIXELS.astype(np.uint16) * 16
"""Values of 12 bits, which become the pixels by the range 0 to 4080."""


def npy(array: np.ndarray) -> bytes:
    """Return an NPY file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, damage: int = 0) -> bytes:
    """Return a chunk of a PNG file."""
    check = zlib.crc32(kind + content) ^ damage
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png16(values: np.ndarray, color_type: int, filter_type: int = 0) -> bytes:
    """Return a PNG file of 16 bits per value of an array (H, W, C)."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    pixels = np.ascontiguousarray(values.astype(">u2")).view(np.uint8).reshape(height, -1).astype(int)
    around = np.pad(pixels, ((1, 0), (2 * channels, 0)))
    left, up, corner = around[1:, : -2 * channels], around[:-1, 2 * channels :], around[:-1, : -2 * channels]
    distances = np.stack([abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)])
    paeth = np.choose(distances.argmin(axis=0), [left, up, corner])
    predicted = [0 * pixels, left, up, (left + up) // 2, paeth][filter_type]
    rows = np.pad((pixels - predicted) % 256, ((0, 0), (1, 0)), constant_values=filter_type)
    content = zlib.compress(rows.astype(np.uint8).tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, **options: Any) -> bytes:
    """Return a TIFF file of an array (H, W, C), or of other axes that the options name."""
    if values.shape[0] == 16:
        options = {"photometric": "rgb" if values.shape[2:] == (3,) else "minisblack"} | options
        options = {"planarconfig": "contig"} | options
    options = {"photometric": "minisblack"} | options
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def dicom(values: np.ndarray, bits: int, kind: str = "MONOCHROME2", **fields: Any) -> bytes:
    """Return a DICOM file of an array (H, W, C), or (frames, H, W) of as many frames as `fields` say."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.UID("1.2.3")
    frames = fields.get("NumberOfFrames", 1)
    height, width, channels = (*values.shape, 1)[1:] if frames > 1 else values.shape
    described = dict(Rows=height, Columns=width, SamplesPerPixel=channels, PhotometricInterpretation=kind)
    described |= dict(BitsAllocated=8 * values.itemsize, BitsStored=bits, HighBit=bits - 1)
    described |= dict(PixelRepresentation=int(values.dtype.kind == "i"), PixelData=values.tobytes())
    described |= dict(PlanarConfiguration=0) if channels > 1 else {}
    for name, value in (described | fields).items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
