"""Unusual and broken files in a folder of images: cropped correctly or skipped, and no worker dies."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from dino_exp.data.loader import BatchOrder, CropBatches, batches
from dino_exp.data.source import CorruptImageError
from tests.data.sources import as_file, load, multi_crop, noise, png_of_size, released_augment, turned

RED = (200, 40, 10)
GRAY = (120, 120, 120)


def plain(
    mode: str = "RGB", color: float | tuple[int, ...] = RED, size: tuple[int, int] = (64, 48)
) -> Image.Image:
    return Image.new(mode, size, color)


NOISE = noise(48, 64)
LARGE_NOISE = NOISE.resize((1024, 768), Image.Resampling.BICUBIC)
"""Large enough to be decoded at an eighth of its size."""
BLUE = plain(color=(0, 0, 255)).quantize(2)

READABLE = {
    "alpha.png": (as_file(plain("RGBA", (*RED, 0)), "PNG"), RED),
    "animated.gif": (as_file(plain().quantize(2), "GIF", save_all=True, append_images=[BLUE, BLUE]), RED),
    "cmyk.jpg": (as_file(plain().convert("CMYK"), "JPEG", quality=95), RED),
    "exif.jpg": (as_file(plain(), "JPEG", quality=95, exif=turned()), RED),
    "gray.jpg": (as_file(plain("L", 120), "JPEG"), GRAY),
    "large.jpg": (as_file(plain(size=(1024, 768)), "JPEG", quality=95), RED),
    "large_cmyk.jpg": (as_file(plain(size=(1024, 768)).convert("CMYK"), "JPEG", quality=95), RED),
    "large_gray.jpg": (as_file(plain("L", 120, (1024, 768)), "JPEG"), GRAY),
    "palette.png": (as_file(plain().quantize(2), "PNG"), RED),
    "single.jpg": (as_file(plain("L", 120, (1, 1)), "JPEG"), GRAY),
    "single.png": (as_file(plain(size=(1, 1)), "PNG"), RED),
    "thin.png": (as_file(plain(size=(900, 1)), "PNG"), RED),
}
UNREADABLE = {
    "empty.jpg": b"",
    "half.gif": as_file(NOISE.quantize(64), "GIF")[:2000],
    "half.jpg": as_file(NOISE, "JPEG")[:2000],
    "half.png": as_file(NOISE, "PNG")[:5000],
    "half_progressive.jpg": as_file(NOISE, "JPEG", progressive=True)[:1500],
    "huge.png": png_of_size(20_000, 20_000),
    "large_half.jpg": as_file(LARGE_NOISE, "JPEG")[:20_000],
    "page.png": b"<!DOCTYPE html><html></html>",
    "text.jpg": b"a text file named .jpg",
    "without_end.jpg": as_file(LARGE_NOISE, "JPEG")[:-300],
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("backend", ["fast", "pil"])
def test_every_file_is_cropped_correctly_or_skipped(backend: str, channels: int, tmp_path: Path) -> None:
    for name, content in ({k: v for k, (v, _) in READABLE.items()} | UNREADABLE).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "last.png").write_bytes(READABLE["palette.png"][0])
    source = load("image_folder", root=tmp_path, val_root=None, channels=channels, backend=backend).train
    crops = multi_crop(global_size=16, local_size=8, local_scale=[0.1, 0.4])
    no_step = released_augment(
        channels=channels, flip=0.0, jitter=0.0, gray=0.0, blur=[0.0, 0.0, 0.0], solarize=0.0
    )
    dataset = CropBatches(source, crops, no_step, seed=0, backend=backend)
    one_by_one = BatchOrder(len(source), 1, 0, 0, len(source))
    made = list(batches(dataset, one_by_one, workers=2, pin_memory=False))
    assert len(made) == len(READABLE) + len(UNREADABLE) + 1
    for (_, [index]), batch in zip(one_by_one, made, strict=True):
        name = Path(source.name(index)).name
        if name in UNREADABLE:
            assert batch.corrupt[0] == index
            with pytest.raises(CorruptImageError, match=name):
                source.read(index)
        else:
            assert batch.corrupt.tolist() == []
            color = torch.tensor(READABLE.get(name, (b"", RED))[1], dtype=torch.float)
            if channels == 1:
                color = (color * torch.tensor([0.299, 0.587, 0.114])).sum(0, keepdim=True)
            for part in (batch.global_crops, batch.local_crops):
                assert (part - color[:, None, None]).abs().max() <= 4, name
