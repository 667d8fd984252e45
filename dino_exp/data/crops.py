"""Multi-crop: the boxes of an image's crops, and cutting them out (paper, section 3.1).

This happens on uint8 images in the loader's processes; `augment` then changes the crops in batches. All
randomness is passed in as a table of uniform numbers, so a crop depends on those numbers alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

ATTEMPTS = 10
"""Boxes tried per crop before the central crop is used, as in torchvision's RandomResizedCrop."""
RATIO = (3 / 4, 4 / 3)
"""Least and greatest aspect ratio (width / height) of a box."""
FACTORS = (8, 4)
"""Factors by which an image may be scaled down while it is decoded. 2 does not pay: boxes with fractional
edges need Pillow's resizing, which costs more than decoding at half the size saves."""
MARGIN = 1.1
"""Least ratio of a box to its crop in an image that is scaled down: with this, the crops of photographs
differ from those of the full image by one value in 255 on average."""


class MultiCrop:
    """Two global crops and `local_number` local ones, each a random box resized to a square.

    Args:
        global_size, local_size: side in pixels.
        global_scale, local_scale: least and greatest share of the image's area in a box.
        local_number: local crops per image.
    """

    uniforms = 2 * ATTEMPTS + 2
    """How many uniform numbers one box uses: area and ratio of each attempt, then top and left."""

    def __init__(
        self,
        *,
        global_size: int,
        global_scale: list[float],
        local_size: int,
        local_number: int,
        local_scale: list[float],
    ) -> None:
        self.global_size, self.local_size, self.local_number = global_size, local_size, local_number
        self.sizes = [global_size] * 2 + [local_size] * local_number
        self.scales = np.array([global_scale] * 2 + [local_scale] * local_number)

    def __len__(self) -> int:
        """Return the number of crops per image."""
        return len(self.sizes)

    @property
    def pixels(self) -> int:
        """Pixels of all crops of an image."""
        return sum(size**2 for size in self.sizes)

    def boxes(self, uniform: np.ndarray, height: int, width: int) -> np.ndarray:
        """Draw the boxes of one image's crops, as torchvision's RandomResizedCrop draws them.

        Args:
            uniform: (crops, `uniforms`) numbers in [0, 1).
            height, width: size of the image in pixels.

        Returns:
            (crops, 4) integers: top, left, height, width.
        """
        tries = uniform[:, : 2 * ATTEMPTS].reshape(len(self), ATTEMPTS, 2)
        low, high = self.scales[:, :1], self.scales[:, 1:]
        area = (low + tries[..., 0] * (high - low)) * (height * width)
        log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
        ratio = np.exp(log_low + tries[..., 1] * (log_high - log_low))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        first = fits.argmax(1)
        crop = np.arange(len(self))
        # Where no attempt fits, the largest central box of an allowed ratio is used.
        central_h = max(1, min(height, round(width / RATIO[0])))
        central_w = max(1, min(width, round(height * RATIO[1])))
        found = fits.any(1)
        h = np.where(found, h[crop, first], central_h)
        w = np.where(found, w[crop, first], central_w)
        corner = uniform[:, 2 * ATTEMPTS :]
        top = np.where(found, corner[:, 0] * (height - h + 1), (height - h) // 2).astype(np.int64)
        left = np.where(found, corner[:, 1] * (width - w + 1), (width - w) // 2).astype(np.int64)
        return np.stack([top, left, h, w], 1)

    def cut(self, image: torch.Tensor, boxes: np.ndarray) -> list[torch.Tensor]:
        """Cut the boxes out of a uint8 image (C, H, W) and resize each to its size, antialiased bicubic."""
        crops = []
        for (top, left, height, width), size in zip(boxes.tolist(), self.sizes, strict=True):
            crop = image[None, :, top : top + height, left : left + width]
            if (height, width) != (size, size):
                crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
            crops.append(crop[0])
        return crops

    def factor(self, boxes: np.ndarray) -> int:
        """Return the factor (8, 4 or 1) by which the image may be scaled down for these boxes.

        Every box is then still larger than its crop.
        """
        largest = (boxes[:, 2:].min(1) / self.sizes).min() / MARGIN
        return next((factor for factor in FACTORS if factor <= largest), 1)

    def cut_shrunk(self, image: torch.Tensor, boxes: np.ndarray, factor: int) -> list[torch.Tensor]:
        """Cut the boxes of the full image out of one scaled down, (1 or 3, ⌈H / factor⌉, ⌈W / factor⌉).

        The edges are then between two pixels. Rounding them would shift a crop by up to half of one of its
        own pixels and change its values three times as much as the smaller decoding does.
        """
        pillow = to_pillow(image)
        crops = []
        for (top, left, height, width), size in zip(boxes / factor, self.sizes, strict=True):
            right, bottom = min(left + width, pillow.width), min(top + height, pillow.height)
            x, y = math.floor(left), math.floor(top)
            crop = pillow.crop((x, y, math.ceil(right), math.ceil(bottom)))
            inner = (left - x, top - y, right - x, bottom - y)
            crops.append(from_pillow(crop.resize((size, size), Image.Resampling.BICUBIC, inner)))
        return crops


def to_pillow(image: torch.Tensor) -> Image.Image:
    """Convert a uint8 image (1 or 3, H, W) to Pillow's mode L or RGB."""
    values = image.permute(1, 2, 0).numpy()
    return Image.fromarray(values[:, :, 0] if len(image) == 1 else values)


def from_pillow(image: Image.Image) -> torch.Tensor:
    """Convert to uint8 (C, H, W) in channels-last memory, in which resizing is fastest."""
    values = np.array(image)
    return torch.from_numpy(values if values.ndim == 3 else values[:, :, None]).permute(2, 0, 1)
