"""Images in unusual forms: what docs/data.md says of each, in both backends and in packed files."""

import io
import logging
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_exp.data.source import CorruptImageError, ImageSource
from tests.data.sources import as_file, load, noise, png_of_size, turned
from tests.programs import ROOT, run_program

RED, GREEN = (200, 40, 10), (20, 180, 60)
GRAY = ((90,) * 3, (30,) * 3)


@dataclass
class Read:
    """A file that is read, with the colors of its left and right halves."""

    content: bytes
    left: tuple[int, ...] = RED
    right: tuple[int, ...] = GREEN
    channels: int = 3


@dataclass
class Unreadable:
    content: bytes
    reason: str
    channels: int = 3


def halves(left: tuple[int, ...] = RED, right: tuple[int, ...] = GREEN, mode: str = "RGB") -> Image.Image:
    """Return an image with an edge on block borders for JPEG."""
    image = Image.new(mode, (32, 16), left if len(left) > 1 else left[0])
    image.paste(right if len(right) > 1 else right[0], (16, 0, 32, 16))
    return image


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, damage: int = 0) -> bytes:
    """Return a chunk of a PNG file."""
    check = zlib.crc32(kind + content) ^ damage
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def with_chunk(extra: bytes, before_pixels: bool = True) -> bytes:
    """Return a PNG file with another chunk before or after its pixels."""
    return PNG[:33] + extra + PNG[33:] if before_pixels else PNG[:-12] + extra + PNG[-12:]


def png16(values: np.ndarray, color_type: int) -> bytes:
    """Return a PNG file of 16 bits per value of an array (H, W, C)."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, sample_format: int = 1) -> bytes:
    """Return an uncompressed TIFF file of an array (H, W, C); sample_format is 2 for values with a sign."""
    height, width, channels = values.shape
    bits, start = 8 * values.itemsize, 8 + 2 + 12 * 10 + 4
    rest = struct.pack(f"<{channels}H", *[bits] * channels) if channels > 2 else b""
    pixels = values.astype(values.dtype.newbyteorder("<")).tobytes()
    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, channels, start if rest else bits),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if channels == 3 else 1),
        (273, 4, 1, start + len(rest)),
        (277, 3, 1, channels),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
        (339, 3, 1, sample_format),
    ]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + table + b"\0" * 4 + rest + pixels


IMAGE = halves()
PIXELS = np.asarray(IMAGE)
DEEP = PIXELS.astype(np.uint16) * 256 + 99
BLUE = Image.new("RGB", IMAGE.size, (0, 0, 255))
PNG, JPEG = as_file(IMAGE, "PNG"), as_file(IMAGE, "JPEG", quality=95)
HIDDEN = halves((*RED, 0), (*GREEN, 255), "RGBA")
CMYK = IMAGE.convert("CMYK")
NOISE = noise(48, 64)
LONG = zlib.compress(b"x" * 2**21)
MALFORMED_MPO = as_file(IMAGE, "MPO", quality=95, save_all=True, append_images=[BLUE.copy()]).replace(
    b"MPF\0II*\0", b"MPF\0\xff\xff\xff\xff"
)

FORMS: dict[str, list[Read | Unreadable]] = {
    "gray, of 1 to 8 bits": [
        Read(as_file(halves((90,), (30,), "L"), "PNG"), *GRAY),
        Read(as_file(halves((90,), (30,), "L"), "JPEG", quality=95), *GRAY),
        Read(as_file(halves((255,), (0,), "1"), "PNG"), (255,) * 3, (0,) * 3),
        Read(as_file(halves((255,), (0,), "1"), "TIFF", compression="group4"), (255,) * 3, (0,) * 3),
    ],
    "color, with `data.channels=1`": [Read(c, (84,), (118,), 1) for c in (PNG, JPEG, npy(PIXELS))],
    "palette": [Read(as_file(IMAGE.quantize(4), kind)) for kind in ("PNG", "GIF", "BMP", "TIFF")],
    "transparency: alpha, a transparent palette entry or color": [
        *(Read(as_file(HIDDEN, kind)) for kind in ("PNG", "TIFF")),
        Read(as_file(HIDDEN, "WEBP", lossless=True, exact=True)),
        Read(as_file(halves((90, 0), (30, 255), "LA"), "PNG"), *GRAY),
        Read(as_file(IMAGE.quantize(4), "PNG", transparency=bytes(4))),
        Read(as_file(IMAGE.quantize(4), "GIF", transparency=0)),
        Read(as_file(IMAGE, "PNG", transparency=RED)),
        Read(as_file(HIDDEN, "PNG"), (*RED, 0), (*GREEN, 255), 4),
    ],
    "CMYK or YCCK (Adobe's inverted ones too), Lab, YCbCr": [
        Read(as_file(CMYK, "JPEG", quality=95)),
        Read(as_file(CMYK, "TIFF")),
        Read(as_file(IMAGE.convert("YCbCr"), "TIFF")),
        Read(as_file(IMAGE.convert("LAB"), "TIFF"), right=(29, 180, 60)),
        Read(as_file(halves((1, 2, 3, 4), (5, 6, 7, 8), "CMYK"), "TIFF"), (1, 2, 3, 4), (5, 6, 7, 8), 4),
    ],
    "16 bits per value (PNG, TIFF, NPY)": [
        Read(png16(DEEP, 2)),
        Read(tiff(DEEP)),
        Read(npy(DEEP)),
        Read(as_file(Image.fromarray(DEEP[:, :, 0]), "PNG"), (RED[0],) * 3, (GREEN[0],) * 3),
        Read(as_file(Image.fromarray(DEEP[:, :, 0]), "TIFF"), (RED[0],) * 3, (GREEN[0],) * 3),
    ],
    "PGM and PPM of other depths": [
        Read(b"P6 32 16 4095\n" + (PIXELS.astype(np.uint16) * 16).astype(">u2").tobytes()),
        Read(b"P5 2 1 1000\n" + struct.pack(">HH", 800, 200), (204,) * 3, (51,) * 3),
        Read(b"P2 2 1 10\n8 2\n", (204,) * 3, (51,) * 3),
    ],
    "values of 32 bits, in floating point or below 0": [
        Unreadable(as_file(Image.new("I", (4, 4), 200), "TIFF"), "32 bits or below 0"),
        Unreadable(as_file(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point"),
        Unreadable(tiff(np.full((4, 4, 1), -5, np.int16), sample_format=2), "32 bits or below 0"),
    ],
    "EXIF orientation": [Read(as_file(IMAGE, "JPEG", quality=95, exif=turned()))],
    "color profile, gamma": [
        Read(as_file(IMAGE, "JPEG", quality=95, icc_profile=b"no profile")),
        Read(with_chunk(chunk(b"gAMA", struct.pack(">I", 20000)))),
    ],
    "several images: animation, pages, stereo photograph": [
        Read(as_file(IMAGE.quantize(4), "GIF", save_all=True, append_images=[BLUE])),
        Read(as_file(IMAGE, "PNG", save_all=True, append_images=[BLUE])),
        Read(as_file(IMAGE, "WEBP", lossless=True, save_all=True, append_images=[BLUE])),
        Read(as_file(halves(), "TIFF", save_all=True, append_images=[BLUE])),
        Read(as_file(IMAGE, "MPO", quality=95, save_all=True, append_images=[BLUE.copy()])),
    ],
    "interlaced, progressive, tiled, compressed by another method": [
        Read(as_file(IMAGE, "GIF", interlace=1)),
        Read(as_file(IMAGE, "JPEG", quality=95, progressive=True)),
        Read(as_file(IMAGE, "JPEG", quality=95, restart_marker_blocks=1, subsampling=0)),
        *(Read(as_file(IMAGE, "TIFF", compression=by)) for by in ("tiff_lzw", "tiff_adobe_deflate")),
    ],
    "a wrong ending in its name": [Read(JPEG), Read(as_file(IMAGE, "BMP"))],
    "PNG with long texts, a large profile or damage beside the pixels; bytes after the end": [
        Read(with_chunk(chunk(b"zTXt", b"workflow\0\0" + LONG))),
        Read(with_chunk(chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG), before_pixels=False)),
        Read(with_chunk(chunk(b"tEXt", b"many\0" + b"x" * 2**20) * 70)),
        Read(with_chunk(chunk(b"iCCP", b"profile\0\0" + LONG))),
        Read(with_chunk(chunk(b"tEXt", b"check sum\0wrong", damage=1))),
        Read(with_chunk(chunk(b"gAMA", b"short"[:2]))),
        Read(with_chunk(chunk(b"tEXt", b"cut\0" + b"x" * 99), before_pixels=False)[:-50]),
        Read(PNG + b"more"),
        Read(JPEG + b"more"),
        Read(JPEG[:-2] + b"\0" + JPEG[-2:]),
    ],
    "pixels that are damaged or cut off": [
        *(Unreadable(as_file(NOISE, kind)[:2000], "damaged") for kind in ("PNG", "JPEG", "WEBP", "TIFF")),
        Unreadable(as_file(NOISE.quantize(64), "GIF")[:2000], "damaged"),
        Unreadable(as_file(NOISE, "JPEG", progressive=True)[:1500], "damaged"),
        Unreadable(PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:], "damaged"),
        Unreadable(PNG[:30] + bytes([PNG[30] ^ 255]) + PNG[31:], "a PNG file whose header is damaged"),
    ],
    "text, a page of HTML, SVG, an empty file, a size of 0": [
        *(Unreadable(each, "not an image") for each in (b"text", b"<!DOCTYPE html>", b"<svg/>", bytes(99))),
        Unreadable(b"", "the file is empty"),
        Unreadable(png_of_size(0, 0), "a PNG file whose header"),
    ],
    "one pixel, or smaller than a crop": [
        Read(as_file(Image.new("RGB", (1, 1), RED), kind), RED, RED) for kind in ("PNG", "GIF", "BMP")
    ],
    "strip: one side much longer than the other": [
        Read(as_file(IMAGE.resize((60_000, 1), Image.Resampling.NEAREST), "PNG")),
        Read(as_file(IMAGE.resize((60_000, 1), Image.Resampling.NEAREST), "JPEG", quality=95)),
    ],
    "more than 178,956,970 pixels, or 1 GiB": [
        Unreadable(png_of_size(20_000, 20_000), "more than 178,956,970 pixels"),
        Unreadable(png_of_size(13_400, 13_400), "more than 178,956,970 pixels"),
    ],
    "NPY: uint8 or uint16, (H, W) or (H, W, channels), in any order of bytes and axes in memory": [
        Read(npy(np.asfortranarray(PIXELS))),
        Read(npy(PIXELS[::-1])),
        Read(npy(DEEP.astype(">u2"))),
        Read(npy(PIXELS[:, :, 0]), (RED[0],) * 3, (GREEN[0],) * 3),
        Read(npy(np.repeat(PIXELS[:, :, :1], 5, axis=2)), (RED[0],) * 5, (GREEN[0],) * 5, 5),
    ],
    "NPY of other types or shapes": [
        Unreadable(npy(PIXELS.astype(np.float32)), "float32 .* uint8 or uint16"),
        Unreadable(npy(PIXELS[None]), r"uint8 \(1, 16, 32, 3\)"),
        Unreadable(npy(np.zeros((0, 4), np.uint8)), r"\(0, 4\)"),
        Unreadable(npy(np.array([{}], dtype=object)), "Object arrays"),
        Unreadable(npy(PIXELS)[:-9], "truncated"),
        Unreadable(npy(PIXELS).replace(b"(16, 32, 3)", b"(99999999999, 32, 3)"), "truncated"),
    ],
    "another number of channels than `data.channels`, which is not 1 or 3": [
        Unreadable(PNG, "has 3 channels, but data.channels is 4", 4),
        Unreadable(as_file(HIDDEN, "PNG"), "has 4 channels, but data.channels is 5", 5),
        Unreadable(npy(np.zeros((4, 4, 5), np.uint8)), "has 5 channels, but data.channels is 3"),
    ],
}


def table() -> dict[str, str]:
    """Return what docs/data.md says happens with each form of an image."""
    page = (ROOT / "docs/data.md").read_text("utf-8")
    rows = re.search(r"\| image \|.*\n\|-.*\n((?:\|.*\n)+)", page)
    assert rows
    return dict(re.findall(r"\| (.*?) \| (.*) \|", rows[1]))


def test_each_form_in_the_documentation_is_tried() -> None:
    assert list(FORMS) == list(table())


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_images(form: str, tmp_path: Path, cache: Path) -> None:
    unreadable = table()[form].startswith("unreadable")
    for number, file in enumerate(FORMS[form]):
        assert isinstance(file, Unreadable) == unreadable
        path = tmp_path / str(number) / "image.jpg"  # whatever it is
        path.parent.mkdir()
        path.write_bytes(file.content)
        for backend, packed in (("fast", False), ("pil", False), ("fast", True)):
            source: ImageSource = load(
                "image_folder",
                root=path.parent,
                val_root=None,
                channels=file.channels,
                backend=backend,
                packed=packed,
            ).train
            if isinstance(file, Unreadable):
                with pytest.raises(CorruptImageError, match=file.reason):
                    source.read(0)
                continue
            image = source.read(0)
            assert (image.dtype, len(image)) == (torch.uint8, file.channels)
            middle = image[:, image.shape[1] // 2].int()
            for column, color in ((0, file.left), (-1, file.right)):
                assert (middle[:, column] - torch.tensor(color)).abs().max() <= 4, (number, backend, packed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (png16(DEEP, 2), "the largest value is then 200 of 255."),
        (png16(DEEP // 16, 2), "the largest value is then 12 of 255, which is dark"),
        (tiff(DEEP // 16), "the largest value is then 12 of 255, which is dark"),
        (npy(DEEP[:, :, :1] // 16), "the largest value is then 12 of 255, which is dark"),
        (as_file(Image.fromarray(DEEP[:, :, 0] // 16), "PNG"), "the largest value is then 12 of 255"),
        (PNG, None),
    ],
)
def test_sixteen_bits_are_said(
    content: bytes, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(content)
    (tmp_path / "c.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        load("image_folder", root=tmp_path, val_root=None)
    assert len(caplog.messages) == (said is not None)
    for message in caplog.messages:
        assert f"1 of 3 images looked at ({tmp_path / 'b.png'}) have 16 bits" in message
        assert str(said) in message


def test_a_run_reads_them_and_prints_nothing_of_a_librarys(tmp_path: Path) -> None:
    corrupt_exif = as_file(IMAGE, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    bands = tiff(np.zeros((8, 8, 13), np.uint8))  # a kind that Pillow cannot read
    workflow = with_chunk(chunk(b"zTXt", b"workflow\0\0" + LONG))
    for number, content in enumerate([corrupt_exif, MALFORMED_MPO, workflow] * 20 + [bands]):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.png").write_bytes(content)
    words = "experiment=debug data=image_folder data.val_root=null data.max_corrupt=0.1 trainer.epochs=1"
    run = run_program("train.py", *words.split(), "data.root=images", "output_root=out", folder=tmp_path)
    assert run.returncode == 0, run.output
    assert "a TIFF file whose header is damaged, or of a kind that is not known" in run.output
    assert not re.search("warn|PIL|EXIF|samples", run.output, re.IGNORECASE), run.output
