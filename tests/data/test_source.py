"""Decoding one file to a tensor: formats, channels, and unreadable files."""

import io
import pickle
import warnings
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from dino_exp.data import decoding
from dino_exp.data.decoding import Decoding
from dino_exp.data.source import CorruptImageError, decode_image, read_image
from tests.data.sources import as_file, noise, png_of_size, turned

RED, GREEN = (200, 40, 10), (20, 180, 60)


def two_colors(size: tuple[int, int] = (16, 8)) -> Image.Image:
    """Return an image with red on the left and green on the right, with edges on block borders for JPEG."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (size[0] // 2, 0, *size))
    return image


GOOD = {  # content, and the colors on the left and on the right
    "rgb.jpg": (as_file(two_colors(), "JPEG", quality=95), RED, GREEN),
    "cmyk.jpg": (as_file(two_colors().convert("CMYK"), "JPEG", quality=95), RED, GREEN),
    "gray.jpg": (as_file(Image.new("L", (16, 8), 90), "JPEG"), (90, 90, 90), (90, 90, 90)),
    "rgb.png": (as_file(two_colors(), "PNG"), RED, GREEN),
    "palette.png": (as_file(two_colors().quantize(4), "PNG"), RED, GREEN),
    "palette.gif": (as_file(two_colors().quantize(4), "GIF"), RED, GREEN),
    "alpha.png": (as_file(Image.new("RGBA", (16, 8), (*RED, 128)), "PNG"), RED, RED),
    "gray_alpha.png": (as_file(Image.new("LA", (16, 8), (90, 3)), "PNG"), (90, 90, 90), (90, 90, 90)),
    "bilevel.png": (as_file(Image.new("1", (16, 8), 1), "PNG"), (255, 255, 255), (255, 255, 255)),
    "webp.webp": (as_file(two_colors(), "WEBP", lossless=True), RED, GREEN),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_file_becomes_rgb_and_luminance(name: str, tmp_path: Path) -> None:
    content, left, right = GOOD[name]
    red, green, blue = left
    (tmp_path / name).write_bytes(content)
    rgb, gray = read_image(tmp_path / name, Decoding(3)), read_image(tmp_path / name, Decoding(1))
    assert (rgb.dtype, rgb.shape, gray.shape) == (torch.uint8, (3, 8, 16), (1, 8, 16))
    assert (rgb[:, 4, 2].int() - torch.tensor(left)).abs().max() <= 3
    assert (rgb[:, 4, 13].int() - torch.tensor(right)).abs().max() <= 3
    assert abs(int(gray[0, 4, 2]) - (0.299 * red + 0.587 * green + 0.114 * blue)) <= 3


def test_other_channel_counts_are_read_as_stored(tmp_path: Path) -> None:
    values = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
    np.save(tmp_path / "five.npy", values)
    assert np.array_equal(read_image(tmp_path / "five.npy", Decoding(5)), values.transpose(2, 0, 1))
    Image.new("RGBA", (3, 2), (1, 2, 3, 4)).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png", Decoding(4))[:, 1, 2].tolist() == [1, 2, 3, 4]
    Image.new("CMYK", (3, 2), (1, 2, 3, 4)).save(tmp_path / "cmyk.tif")
    assert read_image(tmp_path / "cmyk.tif", Decoding(4))[:, 1, 2].tolist() == [1, 2, 3, 4]
    with pytest.raises(CorruptImageError, match=r"rgba\.png: has 4 channels, but data\.channels is 5"):
        read_image(tmp_path / "rgba.png", Decoding(5))
    with pytest.raises(CorruptImageError, match=r"has 5 channels, but data\.channels is 3"):
        read_image(tmp_path / "five.npy", Decoding(3))


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


NOISE = noise(64, 64)
BAD = {
    "empty.jpg": (b"", "the file is empty"),
    "text.jpg": (b"this is no image", "not an image"),
    "page.png": (b"<!DOCTYPE html><html></html>", "not an image"),
    "half.jpg": (as_file(NOISE, "JPEG")[:2000], "damaged or truncated"),
    "header.jpg": (as_file(NOISE, "JPEG")[:30], "damaged or truncated"),
    "half.png": (as_file(NOISE, "PNG")[:5000], "damaged or truncated"),
    "half.webp": (as_file(NOISE, "WEBP")[:900], "damaged or truncated"),
    "half.npy": (npy(np.zeros((8, 8), np.uint8))[:140], r"truncated \.npy"),
    "float.npy": (
        npy(np.zeros((8, 8))),
        r"floating point \(0 to 0\) and data.range is null; set data.range=\[0,1\]",
    ),
    "nan.tif": (as_file(Image.new("F", (4, 4), np.nan), "TIFF"), "all values are NaN or infinite"),
    "huge.png": (png_of_size(20_000, 20_000), "more than 178,956,970 pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_of_unreadable_files_have_name_and_reason(name: str, tmp_path: Path) -> None:
    content, reason = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorruptImageError, match=reason) as caught:
        read_image(tmp_path / name, Decoding(3))
    assert caught.value.name == str(tmp_path / name)
    assert "\n" not in caught.value.reason
    copy = pickle.loads(pickle.dumps(caught.value))  # as it comes out of a worker
    assert (copy.name, copy.reason) == (caught.value.name, caught.value.reason)


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(CorruptImageError, match="No such file"):
        read_image(tmp_path / "gone.jpg", Decoding(3))


SMOOTH = noise(6, 9, seed=1).resize((333, 217), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_jpeg_can_be_decoded_at_a_smaller_size(factor: int, channels: int) -> None:
    requested = []

    def shrink(height: int, width: int) -> int:
        requested.append((height, width))
        return factor

    content = as_file(SMOOTH, "JPEG", quality=95)
    full = decode_image(content, "full", Decoding(channels))
    small = decode_image(content, "small", Decoding(channels), shrink=shrink)
    assert requested == [(217, 333)]
    assert small.shape == (channels, -(-217 // factor), -(-333 // factor))
    rows, columns = 217 // factor, 333 // factor
    means = torch.nn.functional.avg_pool2d(full[None].float(), factor)[0]
    assert (small[:, :rows, :columns] - means).abs().mean() < 1
    half = content[: len(content) // 2]
    with pytest.raises(CorruptImageError, match="half: damaged or truncated"):
        decode_image(half, "half", Decoding(channels), shrink=lambda *_: factor)


def test_other_formats_are_decoded_at_full_size() -> None:
    def shrink(height: int, width: int) -> NoReturn:
        raise AssertionError

    for file_format in ("PNG", "WEBP", "GIF"):
        content = as_file(SMOOTH, file_format)
        assert decode_image(content, "image", Decoding(3), shrink=shrink).shape == (3, 217, 333)


def test_both_backends_decode_to_the_same_values() -> None:
    for name, (content, *_) in GOOD.items():
        fast, pil = (decode_image(content, name, Decoding(3, backend)) for backend in ("fast", "pil"))
        assert torch.equal(fast, pil)
        released = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(pil.permute(1, 2, 0), released)


JPEG_KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "4:2:0": ("RGB", {"subsampling": "4:2:0"}),
    "4:2:2": ("RGB", {"subsampling": "4:2:2"}),
    "4:4:4": ("RGB", {"subsampling": "4:4:4"}),
    "not transformed": ("RGB", {"keep_rgb": True}),
    "progressive": ("RGB", {"progressive": True}),
    "with restarts": ("RGB", {"restart_marker_blocks": 2}),
    "turned": ("RGB", {"exif": turned()}),
    "gray": ("L", {}),
    "CMYK": ("CMYK", {}),
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_each_kind_of_jpeg_has_the_values_that_pillow_returns(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, options = JPEG_KINDS[kind]
    content = as_file(SMOOTH.convert(mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        assert np.array_equal(decode_image(content, "image", Decoding(3)).permute(1, 2, 0), expected)
        monkeypatch.setattr(decoding, "simplejpeg", None)
        assert np.array_equal(decode_image(content, "image", Decoding(3)).permute(1, 2, 0), expected)
    assert not given


def test_both_decoders_agree_on_damaged_jpegs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    whole = np.frombuffer(as_file(SMOOTH, "JPEG", restart_marker_blocks=2), np.uint8)
    fast = decoding.simplejpeg
    read = []
    for _ in range(100):
        damaged = whole.copy()
        damaged[random.integers(len(whole), size=2)] ^= np.uint8(1 << random.integers(8))
        results = []
        for decoder in (fast, None):
            monkeypatch.setattr(decoding, "simplejpeg", decoder)
            try:
                results.append(decode_image(damaged.tobytes(), "image", Decoding(3)))
            except CorruptImageError:
                results.append(torch.empty(0))
        assert torch.equal(*results)
        read.append(results[0].numel() > 0)
    assert {True, False} == set(read)
    assert capfd.readouterr() == ("", "")
