"""What is stored is read without changing a value, whatever the format, depth and number of channels."""

import base64
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image

from dino_exp.data.stored_values import UnsuitableError, stored_values
from tests.data.image_files import dicom, npy, png16, tiff
from tests.data.sources import as_file

DEEP = np.random.default_rng(0).integers(0, 65536, (16, 21, 10)).astype(np.uint16)


def written(kind: type, channels: int) -> np.ndarray:
    """Return random values of a type over all of its range."""
    values = DEEP[:, :, :channels]
    return (values / 7.0).astype(kind) if kind in (np.float32, np.float64) else values.astype(kind)


def check_equal(content: bytes, values: np.ndarray, bits: int | None = None) -> None:
    found = stored_values(content)
    assert (found.values.dtype, found.values.shape) == (values.dtype, values.shape)
    assert np.array_equal(found.values, values)
    assert found.bits == (bits or 8 * values.itemsize)


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_sixteen_bits(color_type: int, channels: int) -> None:
    for filter_type in range(5):  # filters combine the bytes of neighbors
        check_equal(png16(DEEP[:, :, :channels], color_type, filter_type), DEEP[:, :, :channels])


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3, 4, 10])
@pytest.mark.parametrize(
    "kind", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64]
)
def test_tiff_of_every_type(kind: type, channels: int, byteorder: str) -> None:
    values = written(kind, channels)
    check_equal(tiff(values if channels > 1 else values[:, :, 0], byteorder=byteorder), values)
    if channels > 3:
        compressed = {"compression": "zlib", "predictor": values.dtype.kind != "f"}
        check_equal(tiff(values.transpose(2, 0, 1), planarconfig="separate", **compressed), values)


@pytest.mark.parametrize("kind", [np.int8, np.uint32, np.int64, np.uint64, np.float16, np.float64])
def test_arrays_of_every_type(kind: type) -> None:
    values: np.ndarray = written(np.float64, 2).astype(kind)
    check_equal(npy(values), values)
    check_equal(npy(values[:, :, 0].astype(values.dtype.newbyteorder(">"))), values[:, :, :1])


def test_pgm_and_ppm_keep_the_values_that_they_state() -> None:
    values = DEEP[:, :, :3] // 16
    check_equal(b"P6 # a comment\n21 16\n4095\n" + values.astype(">u2").tobytes(), values, 12)
    check_equal(b"P5\n21\n16\n65535\n" + DEEP[:, :, 0].astype(">u2").tobytes(), DEEP[:, :, :1])
    check_equal(b"P2 3 1 1023\n0 17 1023", np.array([[[0], [17], [1023]]], np.uint16), 10)


def test_channels_in_pages_and_the_first_of_all_other_axes() -> None:
    stack = np.stack([DEEP[:, :, :3].transpose(2, 0, 1), DEEP[:, :, 3:6].transpose(2, 0, 1)])  # Z C Y X
    for axes, array in (("ZCYX", stack), ("CZYX", stack.transpose(1, 0, 2, 3))):
        check_equal(tiff(array, ome=True, metadata={"axes": axes}), DEEP[:, :, :3])
    check_equal(tiff(stack, imagej=True, metadata={"axes": "ZCYX"}), DEEP[:, :, :3])
    check_equal(tiff(stack[0], ome=True, metadata={"axes": "ZYX"}), DEEP[:, :, :1])
    check_equal(tiff(stack[0]), DEEP[:, :, :1])  # pages that nothing is said of


def test_dicom_is_rescaled_and_inverted() -> None:
    values = DEEP[:, :, :1] // 16
    check_equal(dicom(values, 12), values, 12)
    check_equal(dicom(values, 12, "MONOCHROME1"), 4095 - values, 12)
    ct = dicom(values.astype(np.int16), 16, RescaleSlope=1, RescaleIntercept=-1024)
    check_equal(ct, values.astype(np.float32) - 1024, 16)


def test_gray_jpeg2000_keeps_its_values() -> None:
    content = as_file(Image.fromarray(DEEP[:, :, 0]), "JPEG2000", irreversible=False)
    check_equal(content, DEEP[:, :, :1])


def test_heif_of_ten_bits() -> None:
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None], 64, axis=0).repeat(3, axis=2)
    image = pillow_heif.from_bytes(mode="RGB;16", size=(64, 64), data=ramp.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, quality=-1, chroma=444)
    found = stored_values(buffer.getvalue())
    assert (found.format, found.bits, found.values.dtype) == ("HEIF", 10, np.uint16)
    assert np.abs(found.values.astype(int) - (ramp >> 6)).max() <= 1


def jpeg2000(depth: int, components: int) -> bytes:
    """Return the JPEG 2000 file of an image, with another depth in its header."""
    content = bytearray(as_file(Image.new("RGB", (8, 8)), "JPEG2000"))
    start = content.find(b"\xff\x4f\xff\x51")
    for number in range(components):
        content[start + 42 + 3 * number] = depth - 1
    return bytes(content)


AVIF = base64.b64decode(
    b"AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUEAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAA"
    b"AAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAHwAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEA"
    b"AGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAACAAAAAgAAAAQcGl4aQAAAAADCgoKAAAADGF2MUOBIEAA"
    b"AAAAE2NvbHJuY2x4AAIAAgAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAJ21kYXQSAAoIOAi/bwICBpAyERlCYwTAADQAAACQ"
    b"P5sMYUKy"
)
"""A black AVIF file with 10 bits per value."""


@pytest.mark.parametrize(
    ("missing", "content", "reason"),
    [
        (
            "imagecodecs",
            jpeg2000(12, 3),
            r"JPEG 2000 file with 12 bits per value, .*'dino-exp\[tiff\]' reads",
        ),
        ("imagecodecs", AVIF, r"AVIF file with 10 bits per value, of which Pillow keeps 8; pip install"),
        ("tifffile", tiff(DEEP), r"only tifffile reads: pip install 'dino-exp\[tiff\]'"),
        ("tifffile", tiff(DEEP[:, :, :3]), r"only tifffile reads: pip install 'dino-exp\[tiff\]'"),
        ("pydicom", dicom(DEEP[:, :, :1], 16), r"a DICOM file: pip install 'dino-exp\[dicom\]'"),
    ],
)
def test_what_needs_a_library_names_it(
    missing: str, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UnsuitableError, match=reason):
        stored_values(content)


def test_pillow_alone_reads_deep_gray_tiff(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [tiff(written(kind, 1)[:, :, 0]) for kind in (np.uint16, np.int16, np.uint32)]
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for content, kind in zip(contents, (np.uint16, np.int16, np.uint32), strict=True):
        check_equal(content, written(kind, 1))


def test_compression_by_lzw_needs_imagecodecs(monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(tiff(DEEP))
    entry = content.find(struct.pack("<HHI", 259, 3, 1))
    content[entry + 8] = 5  # says LZW
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for name in [name for name in sys.modules if name.startswith("tifffile")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UnsuitableError, match=r"needs imagecodecs: pip install 'dino-exp\[tiff\]'"):
        stored_values(bytes(content))


def test_imagecodecs_reads_what_pillow_cannot(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer, DEEP, compression="lzw", predictor=True, photometric="minisblack", planarconfig="contig"
    )
    check_equal(buffer.getvalue(), DEEP)
    twelve = DEEP[:, :, :3] // 16
    check_equal(imagecodecs.jpeg2k_encode(twelve, bitspersample=12, level=0, reversible=True), twelve, 12)
