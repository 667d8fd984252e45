"""Images in unusual forms: what docs/data.md says of each, in both backends and in packed files."""

import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.errors import UserError
from tests.data.image_files import GREEN, IMAGE, PIXELS, RED, TWELVE, chunk, dicom, halves, npy, png16, tiff
from tests.data.sources import as_file, load, noise, png_of_size, turned
from tests.programs import ROOT, run_program

GRAY = ((90,) * 3, (30,) * 3)


@dataclass
class Read:
    """A file that is read, with the colors of its left and right halves."""

    content: bytes
    left: tuple[int, ...] = RED
    right: tuple[int, ...] = GREEN
    channels: int = 3
    range: list[Any] | None = None
    bands: list[int] | None = None


@dataclass
class Unreadable:
    content: bytes
    reason: str
    channels: int = 3
    range: list[Any] | None = None
    bands: list[int] | None = None


class Refused(Unreadable):
    """A file by which a set is refused before the training."""


def with_chunk(extra: bytes, before_pixels: bool = True) -> bytes:
    """Return a PNG file with another chunk before or after its pixels."""
    return PNG[:33] + extra + PNG[33:] if before_pixels else PNG[:-12] + extra + PNG[-12:]


TO_PIXELS = [0, 4080]
BANDS = np.concatenate([TWELVE[:, :, ::-1] + 1000, TWELVE], axis=2)
LAST_THREE: dict[str, Any] = {"bands": [4, 5, 6], "range": TO_PIXELS}
CHANNELS_IN_PAGES = np.ascontiguousarray(TWELVE.transpose(2, 0, 1))
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
    "more than 8 bits per value, a sign, or floating point, with `data.range`": [
        *(Read(content, range=TO_PIXELS) for content in (png16(TWELVE, 2), tiff(TWELVE), npy(TWELVE))),
        Read(b"P6 32 16 4095\n" + TWELVE.astype(">u2").tobytes(), range=TO_PIXELS),
        Read(as_file(Image.fromarray(TWELVE[:, :, 0]), "PNG"), (RED[0],) * 3, (GREEN[0],) * 3, 3, TO_PIXELS),
        Read(as_file(Image.fromarray(TWELVE[:, :, 0]), "TIFF"), (RED[0],) * 3, (GREEN[0],) * 3, 3, TO_PIXELS),
        Read(b"P5 2 1 1000\n" + struct.pack(">HH", 800, 200), (204,) * 3, (51,) * 3, 3, [0, 1000]),
        Read(npy(PIXELS.astype(np.float64) / 255 - 1), range=[-1, 0]),
        Read(tiff(PIXELS.astype(np.int16) - 300), range=[-300, -45]),
        Read(tiff(PIXELS[:, :, 0].astype(np.float32)), (RED[0],) * 3, (GREEN[0],) * 3, 3, [0, 255]),
        Read(npy(TWELVE), (84,), (118,), 1, TO_PIXELS),
        Read(npy(TWELVE), (255, 0, 0), (0, 255, 255), range=["p0", "p100"]),
        Read(npy(TWELVE), (100, 40, 10), (10, 180, 60), range=[[0, 8160], TO_PIXELS, TO_PIXELS]),
    ],
    "the same without `data.range`": [
        Refused(png16(TWELVE, 2), r"has 16 bits per value \(values 160 to 3,200 in the 1 image looked at\)"),
        Refused(tiff(TWELVE), r"set data.range=\[0,4095\] \(12 bits\), or data.range=\[p0.1,p99.9\]"),
        Refused(
            npy(TWELVE * 20), r"set data.range=\[0,65535\] \(16 bits\).*which is data.range=\[127.5,65407.5\]"
        ),
        Refused(npy(PIXELS.astype(np.uint16)), r"set data.range=\[0,255\] \(8 bits\)"),
        Refused(b"P5 2 1 1000\n" + struct.pack(">HH", 800, 200), "has 10 bits per value"),
        Refused(as_file(Image.new("I", (4, 4), -70_000), "TIFF"), "32 bits and a sign .*values -70,000 to"),
        Refused(as_file(Image.new("F", (4, 4), 0.5), "TIFF"), r"floating point .*set data.range=\[0,1\]"),
        Refused(npy(PIXELS - 123.4), r"values -113.4 to 76.6 .*set data.range=\[-120,77\]"),
    ],
    "8 bits per value, with a `data.range` beyond 0 to 255": [
        Refused(PNG, r"b.png: has 8 bits per value, and \[0,4095\] of data.range is for more", 3, [0, 4095]),
        Refused(npy(PIXELS), r"8 bits per value, and \[-1000,p99\]", 3, [[0, 9], [1, 2], [-1000, "p99"]]),
    ],
    "8 bits per value, with a `data.range` within": [
        Read(PNG, (255, 41, 1), (15, 228, 68), range=[9, 200]),
        Read(JPEG, (255, 0, 0), (0, 255, 255), range=["p0", "p100"]),
        Read(as_file(halves((90,), (30,), "L"), "PNG"), (180,) * 3, (60,) * 3, 3, [0, 127.5]),
    ],
    "NaN or infinite values": [
        Unreadable(
            npy(np.where(value == PIXELS, np.nan, PIXELS)),
            f"{count} values of band {band} are NaN",
            3,
            [0, 9],
        )
        for value, count, band in ((40, 256, 2), (60, 256, 3))
    ],
    "bands of a TIFF file or an array, planar or not": [
        Read(tiff(BANDS), **LAST_THREE),
        Read(tiff(BANDS.transpose(2, 0, 1), planarconfig="separate", compression="zlib"), **LAST_THREE),
        Read(npy(BANDS), **LAST_THREE),
        Read(npy(PIXELS), RED[::-1], GREEN[::-1], bands=[3, 2, 1]),
        Read(PNG, RED[::-1], GREEN[::-1], bands=[3, 2, 1]),
        Read(JPEG, (RED[1],) * 2, (GREEN[1],) * 2, 2, bands=[2, 2]),
        Read(tiff(BANDS, tile=(16, 16), byteorder=">"), **LAST_THREE),
    ],
    "pages that a TIFF file calls channels (OME, ImageJ), with `data.range` or `data.bands`": [
        Read(tiff(CHANNELS_IN_PAGES, ome=True, metadata={"axes": "CYX"}), range=TO_PIXELS),
        Read(tiff(CHANNELS_IN_PAGES, imagej=True, metadata={"axes": "CYX"}), range=TO_PIXELS),
        Read(
            tiff(
                np.stack([CHANNELS_IN_PAGES, CHANNELS_IN_PAGES * 0]), imagej=True, metadata={"axes": "ZCYX"}
            ),
            range=TO_PIXELS,
        ),
    ],
    "DICOM of one frame (CT: Hounsfield units; MONOCHROME1 inverted)": [
        Read(dicom(TWELVE, 12, "RGB"), range=TO_PIXELS),
        Read(dicom(PIXELS, 8, "RGB")),
        Read(dicom(TWELVE[:, :, :1], 12), (RED[0],) * 3, (GREEN[0],) * 3, 3, TO_PIXELS),
        Read(
            dicom(4080 - TWELVE[:, :, :1], 12, "MONOCHROME1"), (RED[0],) * 3, (GREEN[0],) * 3, 3, [15, 4095]
        ),
        Read(
            dicom(TWELVE[:, :, :1].astype(np.int16), 16, RescaleSlope=2, RescaleIntercept=-1024),
            *((RED[0],) * 3, (GREEN[0],) * 3, 3, [-1024, 7136]),
        ),
    ],
    "DICOM of several frames": [
        Unreadable(
            dicom(CHANNELS_IN_PAGES, 12, NumberOfFrames=3), "3 frames; write each to a file", 3, TO_PIXELS
        ),
    ],
    "PGM and PPM of up to 8 bits": [
        Read(b"P2 2 1 10\n8 2\n", (204,) * 3, (51,) * 3),
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
    "NPY: numbers of shape (H, W) or (H, W, channels), in any order of bytes and axes in memory": [
        Read(npy(np.asfortranarray(PIXELS))),
        Read(npy(PIXELS[::-1])),
        Read(npy(TWELVE.astype(">u2")), range=TO_PIXELS),
        Read(npy(PIXELS[:, :, 0]), (RED[0],) * 3, (GREEN[0],) * 3),
        Read(npy(PIXELS[:, :, 0] == RED[0]), (255,) * 3, (0,) * 3),
        Read(npy(np.repeat(PIXELS[:, :, :1], 5, axis=2)), (RED[0],) * 5, (GREEN[0],) * 5, 5),
    ],
    "NPY of other types or shapes": [
        Unreadable(npy(PIXELS.astype(np.complex64)), "complex64 .* real numbers"),
        Unreadable(npy(PIXELS[None]), r"uint8 \(1, 16, 32, 3\)"),
        Unreadable(npy(np.zeros((0, 4), np.uint8)), r"\(0, 4\)"),
        Unreadable(npy(np.array([{}], dtype=object)), "Object arrays"),
        Unreadable(npy(PIXELS)[:-9], "truncated"),
        Unreadable(npy(PIXELS).replace(b"(16, 32, 3)", b"(99999999999, 32, 3)"), "truncated"),
    ],
    "another number of channels than `data.channels` (which is not 1 or 3) or `data.bands` ask for": [
        Refused(PNG, "b.png: has 3 channels, but data.channels is 4", 4),
        Refused(as_file(HIDDEN, "PNG"), "has 4 channels, but data.channels is 5", 5),
        Refused(npy(np.zeros((4, 4, 5), np.uint8)), "has 5 channels, .* is 3; choose with data.bands"),
        Refused(tiff(np.zeros((16, 8, 13), np.uint8)), "has 13 channels, but data.channels is 3; choose"),
        Refused(npy(PIXELS), r"has 3 channels, but data.bands = \[4, 1\]", 2, bands=[4, 1]),
        Refused(npy(CHANNELS_IN_PAGES), r"the shape \(3, 16, 32\), which must be \(H, W, ch", 3, [0, 1]),
        Refused(npy(CHANNELS_IN_PAGES), r"the shape \(3, 16, 32\), which must be \(H, W, ch", 1, bands=[2]),
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
    expected = {"unreadable": Unreadable, "refused": Refused}.get(re.split(r"\W", table()[form])[0], Read)
    for number, file in enumerate(FORMS[form]):
        assert type(file) is expected
        path = tmp_path / str(number) / "b.png"  # whatever it is
        path.parent.mkdir()
        path.write_bytes(file.content)
        for backend, packed in (("fast", False), ("pil", False), ("fast", True)):
            settings = dict(channels=file.channels, backend=backend, range=file.range, bands=file.bands)
            if isinstance(file, Refused):
                with pytest.raises(UserError, match=file.reason):
                    load("image_folder", root=path.parent, val_root=None, packed=packed, **settings)
                continue
            source: ImageSource = load(
                "image_folder", root=path.parent, val_root=None, packed=packed, **settings
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


def test_a_run_reads_them_and_prints_nothing_of_a_librarys(tmp_path: Path) -> None:
    corrupt_exif = as_file(IMAGE, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    cut = tiff(np.zeros((16, 64, 13), np.uint8))[:9000]  # a kind that Pillow cannot read
    workflow = with_chunk(chunk(b"zTXt", b"workflow\0\0" + LONG))
    for number, content in enumerate([corrupt_exif, MALFORMED_MPO, workflow] * 20 + [cut]):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{number}.png").write_bytes(content)
    words = "experiment=debug data=image_folder data.val_root=null data.max_corrupt=0.1 trainer.epochs=1"
    run = run_program("train.py", *words.split(), "data.root=images", "output_root=out", folder=tmp_path)
    assert run.returncode == 0, run.output
    assert "a TIFF file that is damaged, or of a kind that is not known" in run.output
    assert not re.search("warn|PIL|EXIF|samples", run.output, re.IGNORECASE), run.output
