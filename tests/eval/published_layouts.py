"""Tiny data sets in their published layouts, mostly of one color, and a network that sees the color."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn


class MeanColor(nn.Module):
    """A network whose feature is the mean of each channel; `pooled` gives spatial features."""

    def __init__(self) -> None:
        super().__init__()
        self.pooled = nn.AvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.pooled(images).mean(dim=(2, 3))


def color(degrees: float) -> tuple[int, int, int]:
    """Return a color by its angle: two colors, normalized to -1 ... 1, have the cosine of their angles."""
    angle = math.radians(degrees)
    return round(127.5 + 90 * math.cos(angle)), round(127.5 + 90 * math.sin(angle)), 128


def flat(degrees: float, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.new("RGB", size, color(degrees))


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """Return blocks of random colors; size is width and height in pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size)


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, subsampling=0)


def leave_litter(folder: Path) -> None:
    """Write what macOS, a NAS and Windows leave beside the images of a folder, and rename one to .JPG."""
    first = min(folder.glob("*.jpg"))
    (folder / f"._{first.name}").write_bytes(b"\0\5\x16\7")
    (folder / "Thumbs.db").write_bytes(bytes(100))
    save(flat(0), folder / "@eaDir" / first.name / "SYNOPHOTO_THUMB_M.jpg")
    first.rename(first.with_suffix(".JPG"))


def revisited(
    root: Path, name: str, database: Sequence[Image.Image], queries: Sequence[Image.Image], gnd: list[Any]
) -> Path:
    """Write root/<name> with its images; return the path of gnd_<name>.pkl."""
    folder = root / name
    lists: dict[str, Any] = {"gnd": gnd}
    for key, prefix, images in (("imlist", "all_souls", database), ("qimlist", "query", queries)):
        lists[key] = [f"{prefix}_{number:06d}" for number in range(len(images))]
        for each, image in zip(lists[key], images, strict=True):
            save(image, folder / "jpg" / f"{each}.jpg")
    path = folder / f"gnd_{name}.pkl"
    path.write_bytes(pickle.dumps(lists, protocol=2))
    return path


def entry(
    easy: Sequence[float], hard: Sequence[int], junk: Sequence[int], bbx: Sequence[float] = (0, 0, 24, 16)
) -> dict[str, Any]:
    """Return a query's entry in the ground truth; the types are as mixed as in real files."""
    return {"bbx": list(bbx), "easy": np.array(easy), "hard": list(hard), "junk": np.array(junk)}
