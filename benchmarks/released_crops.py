"""The released augmentation as its authors wrote it: one crop after the other, torchvision on PIL images.

Here the loader does everything. With `data.backend=pil` the crops come from our own random numbers, and the
training process does the last two steps, conversion to a tensor and normalization.
"""

from __future__ import annotations

import random

import torch
from PIL import Image, ImageFilter
from torchvision import transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Blur:
    """PIL's Gaussian blur with a random radius of 0.1 to 2 pixels, applied with probability p."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class ReleasedCrops:
    """2 crops of 224 and 8 of 96 pixels of a PIL image, as normalized float32 tensors."""

    def __init__(self) -> None:
        color = [
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
        ]
        finish = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]

        def crop(size: int, scale: tuple[float, float]) -> transforms.RandomResizedCrop:
            return transforms.RandomResizedCrop(
                size, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC
            )

        solarize = transforms.RandomSolarize(threshold=128, p=0.2)
        first = transforms.Compose([crop(224, (0.4, 1.0)), *color, Blur(1.0), *finish])
        second = transforms.Compose([crop(224, (0.4, 1.0)), *color, Blur(0.1), solarize, *finish])
        local = transforms.Compose([crop(96, (0.05, 0.4)), *color, Blur(0.5), *finish])
        self.transforms = [first, second, *[local] * 8]

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [transform(image) for transform in self.transforms]
