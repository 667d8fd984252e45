"""Multi-crop: where each crop of a picture lies, and how it is cut out (paper, section 3.1).

Geometry happens on uint8 pictures in the loader's processes; colour follows in `augment`, batched.
All chance comes in as a table of uniform numbers, so a crop depends on those numbers alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

ATTEMPTS = 10
"""Boxes tried per crop before the central crop is taken, as in torchvision's RandomResizedCrop."""
RATIO = (3 / 4, 4 / 3)
"""Least and greatest aspect ratio (width / height) of a box."""


class MultiCrop:
    """Two global crops and `local_number` local ones, each a random box resized to a square.

    Args:
        global_size, local_size: side in pixels.
        global_scale, local_scale: least and greatest share of the picture's area in a box.
        local_number: local crops per picture.
    """

    uniforms = 2 * ATTEMPTS + 2
    """Uniform numbers that the box of one crop uses: area and ratio of each attempt, then the place."""

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
        """Crops per picture."""
        return len(self.sizes)

    def boxes(self, uniform: np.ndarray, height: int, width: int) -> np.ndarray:
        """Boxes of one picture's crops, drawn as torchvision's RandomResizedCrop draws them.

        Args:
            uniform: (crops, `uniforms`) numbers in [0, 1).
            height, width: of the picture, in pixels.

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
        # Where no attempt fits, the largest central box of an allowed ratio is taken.
        central_h = max(1, min(height, round(width / RATIO[0])))
        central_w = max(1, min(width, round(height * RATIO[1])))
        found = fits.any(1)
        h = np.where(found, h[crop, first], central_h)
        w = np.where(found, w[crop, first], central_w)
        place = uniform[:, 2 * ATTEMPTS :]
        top = np.where(found, place[:, 0] * (height - h + 1), (height - h) // 2).astype(np.int64)
        left = np.where(found, place[:, 1] * (width - w + 1), (width - w) // 2).astype(np.int64)
        return np.stack([top, left, h, w], 1)

    def cut(self, picture: torch.Tensor, boxes: np.ndarray) -> list[torch.Tensor]:
        """Cut the boxes out of a uint8 picture (C, H, W) and resize each to its size, antialiased bicubic."""
        crops = []
        for (top, left, height, width), size in zip(boxes.tolist(), self.sizes, strict=True):
            crop = picture[None, :, top : top + height, left : left + width]
            if (height, width) != (size, size):
                crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
            crops.append(crop[0])
        return crops
