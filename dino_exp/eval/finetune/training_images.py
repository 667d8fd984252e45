"""Images for supervised training: cropped and flipped at random, anew in every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from dino_exp.data.crops import MultiCrop
from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.errors import UserError
from dino_exp.eval.features import Readable, in_batches
from dino_exp.seeding import generator


class SingleCrop(MultiCrop):
    """One crop per image, (C, size, size), with the geometry of the crops in pretraining.

    Args:
        size: side in pixels.
        scale: smallest and largest share of the image's area in a box.
    """

    def __init__(self, size: int, scale: Sequence[float]) -> None:
        self.sizes = [size]
        self.scales = np.array([scale], dtype=np.float64)

    def random(self, image: Tensor, uniform: np.ndarray) -> Tensor:
        """Return a crop of a uint8 image (C, H, W), flipped with probability 1/2.

        uniform: `uniforms` numbers in [0, 1) for the box, then one for the flip.
        """
        boxes = self.boxes(uniform[None, : self.uniforms], image.shape[1], image.shape[2])
        crop = self.cut(image, boxes)[0]
        return crop.flip(-1) if uniform[self.uniforms] < 0.5 else crop


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """Return a permutation of `length` indices that depends on (seed, epoch) alone."""
    return generator(seed, epoch, -1).permutation(length).tolist()


def training_images(
    source: Readable,
    indices: Sequence[int],
    *,
    seed: int,
    epoch: int,
    image_size: int,
    scale: Sequence[float],
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield batches of (images uint8 (B, C, image_size, image_size), their source indices), as `in_batches`.

    Each image is a random box with a share of the area within `scale`, resized bicubically (antialiased),
    and flipped with probability 1/2; all of this depends on (seed, epoch, index) alone.
    """
    crop = SingleCrop(image_size, scale)

    def crops(images: Iterator[tuple[int, Tensor]]) -> Iterator[Tensor]:
        for index, image in images:
            uniform = generator(seed, epoch, index).random(crop.uniforms + 1)
            yield crop.random(image, uniform)[None].contiguous()

    return in_batches(source, indices, crops, batch_size=batch_size, workers=workers)


class Substituting:
    """A source that reads the next readable image instead of an unreadable one, as pretraining does.

    So every batch is full, on every process. The image read for `index` has the label of `index_read(index)`.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.unreadable: set[int] = set()
        self._substitutes: dict[int, int] = {}

    def index_read(self, index: int) -> int:
        """Return the source index of the image that was last read for `index`."""
        return self._substitutes.get(index, index)

    def read(self, index: int) -> Tensor:
        """Return an image uint8 (C, H, W). Raises UserError if the source has no readable image."""
        for offset in range(len(self.source)):
            candidate = (index + offset) % len(self.source)
            if candidate in self.unreadable:
                continue
            try:
                image = self.source.read(candidate)
            except CorruptImageError:
                self.unreadable.add(candidate)
                continue
            if offset:
                self._substitutes[index] = candidate
            return image
        raise UserError("None of the training images can be read; is data.root the right folder?")
