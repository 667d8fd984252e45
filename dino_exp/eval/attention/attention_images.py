"""The images of the attention evaluation and their masks: from a data set, or from files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dino_exp.data.decoding import Decoding
from dino_exp.data.image_formats import known_endings
from dino_exp.data.image_scan import is_image
from dino_exp.data.pillow_files import opened_image
from dino_exp.data.source import (
    CorruptImageError,
    ImageSource,
    read_image,
)
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.eval.attention.jaccard import OBJECT, mask_size, read_mask
from dino_exp.eval.features import LONGEST, resize_and_crop
from dino_exp.eval.ranking.image_files import images_below
from dino_exp.eval.subject import Subject

MOST_MASKS = 1000
"""Most images of a data set whose attention is compared with masks."""


class MaskedBatch(NamedTuple):
    """Images of one shape, as the network sees them, with their masks."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    masks: list[Tensor | None]
    """One per image, uint8 (H', W') of the same part of it: 0, OBJECT, VOID; None without a mask."""
    indices: list[int]


class DataSetImages:
    """Images of a data set, cropped to squares of `side` pixels as in other evaluations."""

    def __init__(self, source: ImageSource, subject: Subject, side: int) -> None:
        self._source, self._subject, self._side = source, subject, side

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def with_masks(self) -> list[int]:
        """Return the indices of the images to compare with masks."""
        return evenly_spread(len(self), MOST_MASKS) if self._source.has_masks else []

    def batches(self, indices: Sequence[int]) -> Iterator[MaskedBatch]:
        at_once = images_at_once(self._subject, self._side, self._side)
        for images, kept in self._subject.still_images(self._source, indices, self._side, at_once):
            yield MaskedBatch(images, [self._mask(index) for index in kept], kept)

    def _mask(self, index: int) -> Tensor | None:
        if not self._source.has_masks:
            return None
        mask = self._source.mask(index).to(torch.uint8)[None] * OBJECT
        return resize_and_crop(mask, self._side, self._subject.crop_ratio, "nearest-exact")[0]


class FileImages:
    """Images in files, which keep their aspect ratio; see `fit`.

    strips: paths of those that were read, and of which only a part is seen.
    """

    def __init__(
        self, paths: list[Path], base: Path, masks: Path | None, decoding: Decoding, side: int, stride: int
    ) -> None:
        self._paths, self._base, self._masks = paths, base, masks
        self._decoding, self._side, self._stride = decoding, side, stride
        self.strips: set[Path] = set()

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return str(self._paths[index])

    def mask_path(self, index: int) -> Path | None:
        """Return `masks`/<the image's path in its folder>.png, or else `masks`/<stem>.png, if it exists."""
        if self._masks is None:
            return None
        path = self._paths[index]
        candidates = (
            self._masks / path.relative_to(self._base).with_suffix(".png"),
            self._masks / f"{path.stem}.png",
        )
        return next((each for each in candidates if each.is_file()), None)

    def with_masks(self) -> list[int]:
        return [index for index in range(len(self)) if self.mask_path(index) is not None]

    def check_masks(self) -> None:
        """Raise UserError for a mask whose size, by its header, is not that of its image."""
        for index in self.with_masks():
            mask = self.mask_path(index)
            assert mask is not None
            try:
                with opened_image(self._paths[index]) as image:
                    size = image.size
            except Exception:  # unreadable images are skipped later
                continue
            _check_same_size(mask, mask_size(mask), self._paths[index], size)

    def batches(self, indices: Sequence[int]) -> Iterator[MaskedBatch]:
        for index in indices:
            try:
                image = read_image(self._paths[index], self._decoding)
            except CorruptImageError as error:
                if len(self) == 1:
                    raise UserError(f"attention.source = {error}.") from error
                continue
            if max(image.shape[1:]) > LONGEST * min(image.shape[1:]):
                self.strips.add(self._paths[index])
            seen, shares = fit(image, self._side, self._stride)
            yield MaskedBatch(seen[None], [self._mask(index, image, shares)], [index])

    def _mask(self, index: int, image: Tensor, shares: tuple[float, float]) -> Tensor | None:
        path = self.mask_path(index)
        if path is None:
            return None
        mask = read_mask(path)
        (height, width), (image_height, image_width) = mask.shape, image.shape[-2:]
        _check_same_size(path, (width, height), self._paths[index], (image_width, image_height))
        return mask[: round(height * shares[0]), : round(width * shares[1])]


MaskedImages: TypeAlias = DataSetImages | FileImages
"""Images, some with masks; unreadable ones are missing from the batches."""


def _check_same_size(mask: Path, size: tuple[int, int], image: Path, wanted: tuple[int, int]) -> None:
    if size != wanted:
        raise UserError(
            f"{mask} has {size[0]}x{size[1]} pixels, but {image} has {wanted[0]}x{wanted[1]}; a mask must "
            "have the size of its image."
        )


def fit(images: Tensor, side: int, stride: int) -> tuple[Tensor, tuple[float, float]]:
    """Resize images (..., C, H, W) to a shorter side of `side`, and crop them at the right and below.

    Both sides become multiples of `stride`, and the longer one at most `LONGEST` times the shorter. Also
    returns the shares of height and width that are kept. Bilinear and antialiased, as in the released
    `visualize_attention.py`.
    """
    most = LONGEST * min(images.shape[-2:])
    part = images[..., :most, :most]
    resized = transforms.resize(part, [side], InterpolationMode.BILINEAR, antialias=True)
    height, width = resized.shape[-2:]
    seen = resized[..., : height - height % stride, : width - width % stride]
    shares = (
        seen.shape[-2] / height * (part.shape[-2] / images.shape[-2]),
        seen.shape[-1] / width * (part.shape[-1] / images.shape[-1]),
    )
    return seen, shares


def images_at_once(subject: Subject, height: int, width: int) -> int:
    """Return the number of images of this size that need the memory of one batch of the subject."""
    return max(1, subject.batch_size * subject.image_size**2 // (height * width))


def image_files(source: Path) -> list[Path]:
    """Return the image itself, or the images of a folder at any depth, sorted. Raises UserError if none."""
    if not source.is_file():
        return images_below("attention.source", source)
    if not is_image(source):
        raise UserError(
            f"attention.source = {source}: neither image nor video; names of images end in {known_endings()}."
        )
    return [source]
