"""A small network as evaluations are given it, and images and features from memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.data.source import ArraySource, Splits
from dino_exp.eval.subject import BlockFeatures, Subject


def tiny_vit(seed: int = 0, image_size: int = 32) -> VisionTransformer:
    """16 dimensions, three blocks, two heads, patches of 4."""
    torch.manual_seed(seed)
    return VisionTransformer(patch_size=4, embed_dim=16, depth=3, num_heads=2, image_size=image_size)


def subject(backbone: nn.Module | None = None, *, image_size: int = 32, channels: int = 3) -> Subject:
    """A subject on the CPU in float32; images are normalized to -1 ... 1 and not cropped."""
    backbone = (backbone or tiny_vit(image_size=image_size)).eval().requires_grad_(False)
    return Subject(
        name="tiny",
        digest="0" * 64,
        backbone=backbone,
        device=torch.device("cpu"),
        autocast_type=None,
        image_size=image_size,
        crop_ratio=1.0,
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        batch_size=16,
        workers=0,
        seed=0,
    )


@dataclass
class GivenData:
    """`LabeledData` whose features are what the test says."""

    splits: Splits
    given: dict[str, BlockFeatures] = field(default_factory=dict)

    def features(self, split: str) -> BlockFeatures:
        return self.given[split]


def images(
    labels: list[int] | np.ndarray, *, classes: list[str] | None = None, size: int = 32
) -> ArraySource:
    """Noise images (N, 3, size, size) with these labels."""
    labels = np.asarray(labels, dtype=np.int64)
    images = random_images(len(labels), size, seed=len(labels))
    classes = classes or [str(number) for number in range(int(labels.max()) + 1)]
    return ArraySource("noise", images, labels, classes, 3)


def random_images(n: int, side: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


class ConvNet(nn.Sequential):
    """A convolution with batch norm; its feature is as wide as the convolution, and it has no class token."""

    def __init__(self, width: int, *after: nn.Module, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(3, width, 3, stride=stride),
            nn.BatchNorm2d(width),
            *after,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.feature_dim = width


def block_features(values: Tensor) -> BlockFeatures:
    """(N, rows, D), or (N, D) for a single row, of images 0 ... N-1."""
    values = values if values.ndim == 3 else values.unsqueeze(1)
    return BlockFeatures(values.float(), torch.arange(len(values)))
