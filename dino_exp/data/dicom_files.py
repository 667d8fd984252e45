"""DICOM files of one frame, by the extra `dicom`."""

from __future__ import annotations

import io
import warnings

import numpy as np

from dino_exp.data.undecodable import UndecodableError, UnsuitableError, check_size

NEEDED = "pip install 'dino-exp[dicom]'"
warnings.filterwarnings("ignore", module=r"pydicom")  # about values that do not conform; pixels count here


def is_dicom(content: bytes) -> bool:
    """Return whether a file has the preamble of DICOM."""
    return content[128:132] == b"DICM"


def values_and_bits(content: bytes) -> tuple[np.ndarray, str, int]:
    """Return the values (H, W, C), the word DICOM, and the bits per value."""
    try:
        import pydicom
        from pydicom import pixels
    except ImportError as error:
        raise UnsuitableError(f"a DICOM file: {NEEDED}") from error
    header = pydicom.dcmread(io.BytesIO(content))
    if "Rows" not in header:
        raise UndecodableError("a DICOM file without an image")
    frames = int(header.get("NumberOfFrames", None) or 1)
    if frames > 1:
        raise UndecodableError(f"a DICOM file of {frames} frames; write each to a file of its own")
    bits = int(header.get("BitsStored", header.BitsAllocated))
    check_size(header.Rows, header.Columns, header.SamplesPerPixel * header.BitsAllocated // 8)
    try:
        array: np.ndarray = pixels.pixel_array(header)  # YBR becomes RGB
    except (RuntimeError, NotImplementedError) as error:
        syntax = header.file_meta.TransferSyntaxUID.name
        raise UnsuitableError(
            f"compressed as {syntax}, for which pydicom has no decoder here; install one "
            "(pip install pylibjpeg pylibjpeg-libjpeg), or decompress the files"
        ) from error
    kind = header.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        array = pixels.apply_color_lut(array, header)
        bits = 8 * array.dtype.itemsize
    elif bits == 1:
        array = array * np.uint8(255)
    elif header.SamplesPerPixel == 1:
        if kind == "MONOCHROME1":  # more is darker
            array = (-1 if header.PixelRepresentation else 2**bits - 1) - array
        if (header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)) != (1, 0):
            array = pixels.apply_rescale(array, header).astype(np.float32)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array if array.ndim == 3 else array[:, :, None], "DICOM", bits
