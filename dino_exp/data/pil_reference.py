"""The released DINO pipeline, crop by crop on Pillow images: the reference for `augment`.

The boxes and the parameters are those of the fast pipeline, so one (seed, epoch, index) gives the same crop
in both, except for rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional

from dino_exp.data import augment
from dino_exp.data.augment import Augment
from dino_exp.data.crops import MultiCrop, from_pillow, to_pillow

JITTER = (
    (augment.BRIGHTNESS, functional.adjust_brightness),
    (augment.CONTRAST, functional.adjust_contrast),
    (augment.SATURATION, functional.adjust_saturation),
    (augment.HUE, functional.adjust_hue),
)


class ReleasedPipeline:
    """Cutting and augmenting the crops of an image, without the normalization.

    Args:
        augment: what draws the parameters; it must not rotate, which the released code cannot, nor jitter
            per channel or make gray from the mean. Vertical flips, quarter turns and dropped channels are the
            same as in `augment`.
    """

    def __init__(self, crops: MultiCrop, augment: Augment) -> None:
        self.sizes, self.dropped = crops.sizes, augment.dropped
        # A strength of 0 skips the step, because hue would round values by way of HSV even with a shift of 0.
        self.jitters = [strength > 0 for strength in augment.strengths]

    def __call__(self, image: torch.Tensor, boxes: np.ndarray, parameters: np.ndarray) -> list[torch.Tensor]:
        """Return the finished crops, uint8 (C, S, S) each.

        Args:
            image: uint8 (1 or 3, H, W).
            boxes: (crops, 4), see `MultiCrop.boxes`.
            parameters: (crops, columns), see `Augment.parameters`.
        """
        pillow, crops = to_pillow(image), []
        for (top, left, height, width), size, row in zip(
            boxes.tolist(), self.sizes, parameters.tolist(), strict=True
        ):
            crop = pillow.crop((left, top, left + width, top + height))
            crop = crop.resize((size, size), Image.Resampling.BICUBIC)
            crops.append(from_pillow(self._photometric(crop, row)))
        return crops

    def _photometric(self, crop: Image.Image, row: list[float]) -> Image.Image:
        further = len(row) > augment.RELEASED_COLUMNS
        if further and row[augment.VERTICAL_FLIP]:
            crop = ImageOps.flip(crop)
        if further and row[augment.TURNS]:
            crop = crop.rotate(90 * row[augment.TURNS])  # which moves pixels, and computes none
        if row[augment.FLIP]:
            crop = ImageOps.mirror(crop)
        if further and any(row[self.dropped]):
            pairs = zip(crop.split(), row[self.dropped], strict=True)
            crop = Image.merge(crop.mode, [band.point([0] * 256) if drop else band for band, drop in pairs])
        if row[augment.JITTER]:
            for step in augment.ORDERS[int(row[augment.ORDER])]:
                column, adjust = JITTER[step]
                if self.jitters[step]:
                    crop = adjust(crop, row[column])
        if row[augment.GRAY]:
            crop = functional.to_grayscale(crop, len(crop.getbands()))
        if row[augment.SIGMA]:
            crop = crop.filter(ImageFilter.GaussianBlur(row[augment.SIGMA]))
        if row[augment.SOLARIZE]:
            crop = ImageOps.solarize(crop)
        return crop
