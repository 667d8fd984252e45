"""Images that attention is drawn of, and their masks: of a data set, or in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dino_exp.data.source import FORMATS, IMAGE_SUFFIXES, CorruptImageError, ImageSource, read_image
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.eval.attention.jaccard import OBJECT, mask_size, read_mask
from dino_exp.eval.features import resize_and_crop, still_images
from dino_exp.eval.subject import Subject

MOST_MASKS = 1000
"""Images of a data set whose attention is compared with masks."""


class Batch(NamedTuple):
    """Images of one shape, as the network sees them."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    masks: list[Tensor | None]
    """Each uint8 (H', W') of the same part of the image: 0, OBJECT, VOID."""
    indices: list[int]


class Images(Protocol):
    """Either kind; images that cannot be read are left out of the batches."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def with_masks(self) -> list[int]:
        """Those to compare with masks."""

    def batches(self, indices: Sequence[int]) -> Iterator[Batch]: ...


class SetImages:
    """Of a data set, cut to squares of `side` like those of other evaluations."""

    def __init__(self, source: ImageSource, subject: Subject, side: int) -> None:
        self._source, self._subject, self._side = source, subject, side

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def with_masks(self) -> list[int]:
        return evenly_spread(len(self), MOST_MASKS) if self._source.has_masks else []

    def batches(self, indices: Sequence[int]) -> Iterator[Batch]:
        subject = self._subject
        for images, kept in still_images(
            self._source,
            indices,
            image_size=self._side,
            crop_ratio=subject.crop_ratio,
            batch_size=together(subject, self._side, self._side),
            workers=subject.workers,
        ):
            yield Batch(images, [self._mask(index) for index in kept], kept)

    def _mask(self, index: int) -> Tensor | None:
        if not self._source.has_masks:
            return None
        mask = self._source.mask(index).to(torch.uint8)[None] * OBJECT
        nearest = InterpolationMode.NEAREST_EXACT
        return resize_and_crop(mask, self._side, self._subject.crop_ratio, nearest)[0]


class FileImages:
    """Of files, whose shape is kept; see `fit`."""

    def __init__(
        self, paths: list[Path], base: Path, masks: Path | None, channels: int, side: int, unit: int
    ) -> None:
        self._paths, self._base, self._masks = paths, base, masks
        self._channels, self._side, self._unit = channels, side, unit

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return str(self._paths[index])

    def mask_path(self, index: int) -> Path | None:
        """`masks`/<the image's path in its folder>.png, or else `masks`/<stem>.png, if either is there."""
        if self._masks is None:
            return None
        path = self._paths[index]
        places = (
            self._masks / path.relative_to(self._base).with_suffix(".png"),
            self._masks / f"{path.stem}.png",
        )
        return next((place for place in places if place.is_file()), None)

    def with_masks(self) -> list[int]:
        return [index for index in range(len(self)) if self.mask_path(index) is not None]

    def check_masks(self) -> None:
        """Raise UserError for a mask whose header says another size than its image's."""
        for index in self.with_masks():
            place = self.mask_path(index)
            assert place is not None
            try:
                with Image.open(self._paths[index], formats=FORMATS) as image:
                    size = image.size
            except Exception:  # unreadable images are left out later
                continue
            _same_size(place, mask_size(place), self._paths[index], size)

    def batches(self, indices: Sequence[int]) -> Iterator[Batch]:
        for index in indices:
            try:
                image = read_image(self._paths[index], self._channels)
            except CorruptImageError as error:
                if len(self) == 1:
                    raise UserError(f"attention.source = {error}.") from error
                continue
            seen, shares = fit(image, self._side, self._unit)
            yield Batch(seen[None], [self._mask(index, image, shares)], [index])

    def _mask(self, index: int, image: Tensor, shares: tuple[float, float]) -> Tensor | None:
        place = self.mask_path(index)
        if place is None:
            return None
        mask = read_mask(place)
        (height, width), (tall, wide) = mask.shape, image.shape[-2:]
        _same_size(place, (width, height), self._paths[index], (wide, tall))
        return mask[: round(height * shares[0]), : round(width * shares[1])]


def _same_size(mask: Path, size: tuple[int, int], image: Path, wanted: tuple[int, int]) -> None:
    if size != wanted:
        raise UserError(
            f"{mask} has {size[0]}x{size[1]} pixels and {image} has {wanted[0]}x{wanted[1]}; a mask "
            "needs the size of its image."
        )


def fit(images: Tensor, side: int, unit: int) -> tuple[Tensor, tuple[float, float]]:
    """Images (..., C, H, W) with the shorter side at `side`, then cut at the right and below.

    Both sides become multiples of `unit`; also returns the shares of height and width that are left. Bilinear
    and antialiased, as in the released `visualize_attention.py`.
    """
    resized = transforms.resize(images, [side], InterpolationMode.BILINEAR, antialias=True)
    height, width = resized.shape[-2:]
    seen = resized[..., : height - height % unit, : width - width % unit]
    return seen, (seen.shape[-2] / height, seen.shape[-1] / width)


def together(subject: Subject, height: int, width: int) -> int:
    """How many images of this size take no more memory than a batch of the evaluation's size."""
    return max(1, subject.batch_size * subject.image_size**2 // (height * width))


def image_files(source: Path) -> list[Path]:
    """The image itself, or those of a folder at any depth, by name; hidden ones are passed over."""
    if source.is_file():
        found = [source] if source.suffix.lower() in IMAGE_SUFFIXES else []
    else:
        below = (path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        found = sorted(p for p in below if not any(part[0] == "." for part in p.relative_to(source).parts))
    if not found:
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        where = "a file that is neither image nor video" if source.is_file() else "no images there"
        raise UserError(f"attention.source = {source}: {where}; the names of images end in {endings}.")
    return found
