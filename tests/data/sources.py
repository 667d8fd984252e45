"""Images, data sources and augmentations for tests, and checked access to optional parts of a source."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from dino_exp.config.schema import SCHEMAS, AugmentConfig
from dino_exp.config.targets import build, images_of
from dino_exp.data.augment import Augment
from dino_exp.data.crops import MultiCrop
from dino_exp.data.decoding import Decoding
from dino_exp.data.labeled import LabeledSource
from dino_exp.data.source import CorruptImageError, ImageSource, Shrink, Splits


def load(data: str, **fields: Any) -> Splits:
    """Return the splits of the option `data`, with these fields instead of the defaults."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    return images_of(OmegaConf.merge(OmegaConf.structured(SCHEMAS["data"][data]), values))


def released_augment(**changes: Any) -> Augment:
    """Return the released augmentation with some changes; by default it does not normalize."""
    channels = changes.get("channels", 3)
    of_images = {"channels": channels, "mean": [0.0] * channels, "std": [1.0] * channels}
    augment: Augment = build(OmegaConf.structured(AugmentConfig), **(of_images | changes))
    return augment


def multi_crop(**changes: Any) -> MultiCrop:
    """Return small crops with the released scales, with some changes."""
    sizes: dict[str, Any] = dict(global_size=32, local_size=16, local_number=2)
    return MultiCrop(**(sizes | dict(global_scale=[0.4, 1.0], local_scale=[0.05, 0.4]) | changes))


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return an RGB image of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def as_file(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return the content of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG of one pixel with another size in its header."""
    content = bytearray(as_file(Image.new("L", (1, 1)), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def turned() -> Image.Exif:
    """Return the EXIF of an image that is to be rotated by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


class Album(LabeledSource):
    """Images of any sizes, without labels or masks; some are unreadable."""

    decoding = Decoding()

    def __init__(
        self, images: Sequence[torch.Tensor] | torch.Tensor, unreadable: Collection[int] = ()
    ) -> None:
        super().__init__(Path("album"))
        self.images, self.unreadable = list(images), set(unreadable)

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
        if index in self.unreadable:
            raise CorruptImageError(self.name(index), "torn")
        return self.images[index].clone()

    def name(self, index: int) -> str:
        return f"album {index}"

    def fingerprint(self) -> str:
        raise AssertionError("nothing made from these images is cached")


def held_out(splits: Splits) -> ImageSource:
    """Return the held-out images, which must exist."""
    assert splits.test is not None
    return splits.test


def labels_of(source: ImageSource) -> np.ndarray:
    """Return the labels, which must exist."""
    assert source.labels is not None
    return source.labels


def classes_of(source: ImageSource) -> list[str]:
    """Return the class names, which must exist."""
    assert source.classes is not None
    return source.classes
