"""Still images as a network is given them (read, resized, cropped, normalized), and its mode meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor, nn

from dino_exp.data.read_ahead import ahead
from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.errors import UserError
from dino_exp.parallel import distributed

# Images of one shape are resized together up to this many bytes, so that small ones need no Python each
# and a batch of large photographs never lies in memory at full size.
RESIZE_TOGETHER = 2**24
LONGEST = 8
"""Most that an image is resized of: this many times its shorter side. A strip of one pixel would otherwise
become as high as all others, and as long as its length times that."""


class Readable(Protocol):
    """What is read by index, such as an `ImageSource`."""

    def read(self, index: int) -> Tensor: ...


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode; afterwards every module is back in the mode that it had.

    Modules are restored one by one because a network may be partly frozen in eval mode.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and compute without gradients."""
    with eval_mode(network), torch.inference_mode():
        yield


def resize_and_crop(
    images: Tensor, image_size: int, crop_ratio: float, interpolation: str = "bicubic"
) -> Tensor:
    """Return the central square of images (..., C, H, W), as (..., C, image_size, image_size).

    The shorter side becomes image_size / crop_ratio, antialiased; 224 / 0.875 = 256 is the released code's
    evaluation. Images that already have the size are not changed. Interpolations are named as in torchvision.
    """
    if crop_ratio == 1 and images.shape[-2:] == (image_size, image_size):
        return images
    from torchvision.transforms.v2 import InterpolationMode  # seconds, which small images need not wait for
    from torchvision.transforms.v2 import functional as transforms

    most = LONGEST * min(images.shape[-2:])
    if max(images.shape[-2:]) > most:
        images = transforms.center_crop(images, [min(side, most) for side in images.shape[-2:]])
    side, mode = round(image_size / crop_ratio), InterpolationMode(interpolation)
    resized = transforms.resize(images, [side], mode, antialias=True)
    return transforms.center_crop(resized, [image_size, image_size])


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert uint8 (B, C, H, W) to float32 in 0–1, subtract the mean and divide by the std per channel."""
    channels = images.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"data.mean and data.std have {len(mean)} and {len(std)} values, but the images have "
            f"{channels} channels: give one value per channel."
        )
    shape = (1, channels, 1, 1)
    mean_t = torch.tensor(mean, dtype=torch.float32, device=images.device).view(shape)
    std_t = torch.tensor(std, dtype=torch.float32, device=images.device).view(shape)
    return (images.float() / 255 - mean_t) / std_t


def still_images(
    source: ImageSource,
    indices: Sequence[int],
    *,
    image_size: int,
    crop_ratio: float,
    batch_size: int,
    workers: int = 0,
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield batches of (images uint8 (B, C, image_size, image_size), source indices), as `in_batches`."""

    def resized(images: Iterator[tuple[int, Tensor]]) -> Iterator[Tensor]:
        same_shape: list[Tensor] = []
        for _, image in images:
            if same_shape and (
                image.shape != same_shape[0].shape or len(same_shape) * image.numel() >= RESIZE_TOGETHER
            ):
                yield resize_and_crop(torch.stack(same_shape), image_size, crop_ratio)
                same_shape = []
            same_shape.append(image)
        if same_shape:
            yield resize_and_crop(torch.stack(same_shape), image_size, crop_ratio)

    return in_batches(source, indices, resized, batch_size=batch_size, workers=workers)


def in_batches(
    source: Readable,
    indices: Sequence[int],
    prepared: Callable[[Iterator[tuple[int, Tensor]]], Iterator[Tensor]],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield batches of (images uint8 (B, C, S, S), their source indices), in order.

    `prepared` makes images (n, C, S, S) of some (index, image) pairs. Unreadable images are skipped, so B
    can be less than batch_size. With workers > 0 that many threads read and prepare ahead; the result is the
    same.
    """

    def load(chunk: Sequence[int]) -> tuple[Tensor, list[int]] | None:
        readable: list[int] = []

        def images() -> Iterator[tuple[int, Tensor]]:
            for index in map(int, chunk):
                with suppress(CorruptImageError):
                    image = source.read(index)
                    readable.append(index)
                    yield index, image

        done = list(prepared(images()))
        return (torch.cat(done), readable) if done else None

    chunks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    yield from filter(None, ahead(load, chunks, workers))


def gathered(parts: list[Tensor], device: torch.device | str = "cpu") -> Tensor:
    """Concatenate the batches (B, ...) of all processes in the order of ranks; some may have none."""
    shape = max(distributed.from_all(tuple(parts[0].shape[1:]) if parts else ()))
    # cat outside inference_mode copies into ordinary tensors: a probe may train on them
    return distributed.gathered(torch.cat(parts) if parts else torch.empty(0, *shape, device=device))
