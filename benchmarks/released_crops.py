"""The released augmentation as its authors wrote it: one crop after the other, torchvision on PIL images.

Here the loader does everything. With `data.backend=pil` the crops come from our own random numbers, and the
training process does the last two steps, conversion to a tensor and normalization.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageFilter
from torchvision import transforms

from dino_exp.config.schema import AugmentConfig, CropsConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Blur:
    """PIL's Gaussian blur with a random radius in pixels, applied with probability p."""

    def __init__(self, p: float, least: float = 0.1, most: float = 2.0) -> None:
        self.p, self.least, self.most = p, least, most

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(self.least, self.most)))


class ReleasedCrops:
    """Two global crops and some local ones of a PIL image, as normalized float32 tensors (C, S, S).

    Args:
        crops, augment: the groups of a configuration, or what has their fields; the default is the paper's.
            Of `augment` only what the released code knows counts.
        mean, std: of the images, in 0-1.
    """

    def __init__(
        self,
        crops: Any = None,
        augment: Any = None,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
    ) -> None:
        crops, augment = crops or CropsConfig(), augment or AugmentConfig()
        jitter = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
        color = [
            transforms.RandomHorizontalFlip(p=augment.flip),
            transforms.RandomApply([transforms.ColorJitter(*jitter)], p=augment.jitter),
            transforms.RandomGrayscale(p=augment.gray),
        ]
        blur = [Blur(p, *augment.blur_sigma) for p in augment.blur]
        finish = [transforms.ToTensor(), transforms.Normalize(list(mean), list(std))]

        def crop(size: int, scale: Sequence[float]) -> transforms.RandomResizedCrop:
            return transforms.RandomResizedCrop(
                size, scale=tuple(scale), interpolation=transforms.InterpolationMode.BICUBIC
            )

        large, small = (
            crop(crops.global_size, crops.global_scale),
            crop(crops.local_size, crops.local_scale),
        )
        solarize = transforms.RandomSolarize(threshold=128, p=augment.solarize)
        first = transforms.Compose([large, *color, blur[0], *finish])
        second = transforms.Compose([large, *color, blur[1], solarize, *finish])
        local = transforms.Compose([small, *color, blur[2], *finish])
        self.transforms = [first, second, *[local] * crops.local_number]

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [transform(image) for transform in self.transforms]
