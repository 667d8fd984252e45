"""A small network as a subject of evaluations, and images and features in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.data.decoding import Decoding
from dino_exp.data.source import ArraySource, Splits
from dino_exp.eval.subject import BlockFeatures, Subject


def tiny_vit(seed: int = 0, image_size: int = 32, **changes: Any) -> VisionTransformer:
    """Return a transformer with 16 dimensions, three blocks, two heads and patches of 4 pixels."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(patch_size=4, embed_dim=16, depth=3, num_heads=2, image_size=image_size)
    return VisionTransformer(**settings | changes)


class Looker(nn.Module):
    """Two attention heads on patches of 4 pixels, one by brightness above `dark`, one uniform.

    The class token attends to itself with a tenth.
    """

    patch_size = 4

    def __init__(self, dark: float = -1.0) -> None:
        super().__init__()
        self.dark = dark

    def class_attention(self, x: Tensor) -> Tensor:
        assert not self.training
        bright = nn.functional.avg_pool2d(x.mean(dim=1), 4) - self.dark
        heads = torch.stack([bright, torch.ones_like(bright)], dim=1)
        return 0.9 * heads / heads.sum(dim=(2, 3), keepdim=True)

    def forward_intermediates(self, x: Tensor, **_: object) -> list[Tensor]:
        return [nn.functional.avg_pool2d(x, 4)]


def subject(backbone: nn.Module | None = None, *, image_size: int = 32, channels: int = 3) -> Subject:
    """Return a subject on the CPU in float32; images are normalized to -1 ... 1 and not cropped."""
    backbone = (backbone or tiny_vit(image_size=image_size)).eval().requires_grad_(False)
    return Subject(
        name="tiny",
        digest="0" * 64,
        backbone=backbone,
        device=torch.device("cpu"),
        autocast_type=None,
        image_size=image_size,
        crop_ratio=1.0,
        decoding=Decoding(channels),
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        batch_size=16,
        workers=0,
        seed=0,
    )


@dataclass
class GivenData:
    """`LabeledData` with features that the test gives."""

    splits: Splits
    given: dict[str, BlockFeatures] = field(default_factory=dict)

    def features(self, split: str) -> BlockFeatures:
        return self.given[split]


def labeled_data(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> GivenData:
    """Return features, as `block_features`, of noise images with these labels."""
    names = [str(number) for number in range(int(max(train_labels.max(), test_labels.max())) + 1)]
    sources = [images(each.numpy(), classes=names, size=4) for each in (train_labels, test_labels)]
    splits = Splits(sources[0], sources[1])
    return GivenData(splits, {"train": block_features(train), "test": block_features(test)})


def images(
    labels: list[int] | np.ndarray, *, classes: list[str] | None = None, size: int = 32
) -> ArraySource:
    """Return noise images (N, 3, size, size) with these labels."""
    labels = np.asarray(labels, dtype=np.int64)
    images = random_images(len(labels), size, seed=len(labels))
    classes = classes or [str(number) for number in range(int(labels.max()) + 1)]
    return ArraySource("noise", images, labels, classes, 3)


def dark_and_bright(number: int, seed: int = 0, side: int = 16) -> ArraySource:
    """Return noise images, dark and bright ones in turn."""
    labels = np.arange(number) % 2
    noise = torch.randint(0, 120, (number, 3, side, side), generator=torch.Generator().manual_seed(seed))
    images = noise + 120 * torch.from_numpy(labels).view(-1, 1, 1, 1)
    return ArraySource("brightness", images.to(torch.uint8), labels, ["dark", "bright"], 3)


class Lit(ArraySource):
    """Images whose upper left quarter is bright; that quarter, or the left half, is the object."""

    has_masks = True

    def __init__(self, count: int, side: int = 8, *, half: bool = False) -> None:
        images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
        images[:, :, : side // 2, : side // 2] = 255
        super().__init__("lit", images, None, None, 3)
        self.half = half

    def mask(self, index: int) -> Tensor:
        bright = self.images[index, 0] > 0
        return bright.any(dim=0).expand_as(bright) if self.half else bright


def random_images(n: int, side: int = 8, channels: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)


class Runs:
    """An object that calls what it was given when it is unpickled."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple:
        return self.call, self.arguments


class ConvNet(nn.Sequential):
    """A convolution with batch norm and no class token; its feature is as wide as the convolution."""

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
    """Return values (N, rows, D), or (N, D) for a single row, as the features of images 0 ... N-1."""
    values = values if values.ndim == 3 else values.unsqueeze(1)
    return BlockFeatures(values.float(), torch.arange(len(values)))


NO_DATA = GivenData(Splits(images([0, 1]), None))
"""Images without held-out ones, for evaluations of other files."""
