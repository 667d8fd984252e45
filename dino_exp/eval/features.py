"""Features of still images: a network's, and the raw pixels as the baseline it has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from dino_exp.data.read_ahead import ahead
from dino_exp.data.source import CorruptImageError, ImageSource
from dino_exp.errors import UserError
from dino_exp.parallel import distributed

# Images of one shape are resized together up to this many bytes, so that small ones need no Python each
# and a batch of large photographs never lies in memory at full size.
RESIZE_TOGETHER = 2**24

Chunk: TypeAlias = Sequence[int]
Batch: TypeAlias = "tuple[Tensor, list[int]] | None"


class Features(NamedTuple):
    """Features and where they come from; images that could not be read have no row."""

    values: Tensor
    """(N, D) float32 on the CPU."""
    indices: Tensor
    """(N,) int64: the source's index of each row."""


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is back in the mode that it had.

    Modules are restored one by one because a network may be partly frozen in eval mode.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def resize_and_crop(
    images: Tensor,
    image_size: int,
    crop_ratio: float,
    interpolation: InterpolationMode = InterpolationMode.BICUBIC,
) -> Tensor:
    """The central square of images (..., C, H, W), as (..., C, image_size, image_size).

    The shorter side becomes image_size / crop_ratio, antialiased; 224 / 0.875 = 256 is the released code's
    evaluation. Images that already have the size pass untouched.
    """
    resized = transforms.resize(images, [round(image_size / crop_ratio)], interpolation, antialias=True)
    return transforms.center_crop(resized, [image_size, image_size])


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, C, H, W) → float32, divided by 255, minus mean, divided by std (each per channel)."""
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
    """Batches of (images uint8 (B, C, image_size, image_size), their source indices), in order.

    Unreadable images are left out, so B can be less than batch_size. With workers > 0 that many threads
    read and resize ahead; the result is the same.
    """
    chunks = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]

    def load(chunk: Chunk) -> Batch:
        return _load(source, chunk, image_size, crop_ratio)

    for batch in ahead(load, chunks, workers):
        if batch is not None:
            yield batch


def _load(source: ImageSource, chunk: Chunk, image_size: int, crop_ratio: float) -> Batch:
    """The readable images of the chunk at image_size, and their indices; None where there are none."""
    readable: list[int] = []
    done: list[Tensor] = []
    same_shape: list[Tensor] = []
    for index in chunk:
        try:
            image = source.read(int(index))
        except CorruptImageError:
            continue
        if same_shape and (
            image.shape != same_shape[0].shape or len(same_shape) * image.numel() >= RESIZE_TOGETHER
        ):
            done.append(resize_and_crop(torch.stack(same_shape), image_size, crop_ratio))
            same_shape = []
        same_shape.append(image)
        readable.append(int(index))
    if not readable:
        return None
    done.append(resize_and_crop(torch.stack(same_shape), image_size, crop_ratio))
    return torch.cat(done), readable


def extract(
    backbone: nn.Module,
    source: ImageSource,
    indices: Sequence[int],
    *,
    image_size: int,
    crop_ratio: float,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device | str,
    workers: int = 0,
) -> Features:
    """The backbone's features of the images at `indices`, (N, D), in their order.

    The backbone (already on `device`) runs in eval mode, so batch-norm statistics are used and not moved,
    and is then put back into its modes. Several processes share the work, and all of them get all features.
    Raises UserError when not one image can be read.
    """
    rows: list[Tensor] = []
    kept: list[int] = []
    with evaluating(backbone):
        for images, readable in still_images(
            source,
            distributed.share_of(indices),
            image_size=image_size,
            crop_ratio=crop_ratio,
            batch_size=batch_size,
            workers=workers,
        ):
            rows.append(backbone(normalize(images.to(device), mean, std)).float().cpu())
            kept += readable
    width = max(distributed.from_all(rows[0].shape[1] if rows else 0))
    everything = distributed.gathered(torch.cat(rows) if rows else torch.empty(0, width))
    kept = [index for part in distributed.from_all(kept) for index in part]
    return _collected([everything], kept, source, indices)


def pixels(
    bank: ImageSource,
    bank_indices: Sequence[int],
    queries: ImageSource,
    query_indices: Sequence[int],
    *,
    image_size: int,
    crop_ratio: float,
    batch_size: int = 256,
) -> tuple[Features, Features]:
    """Raw pixels of bank and queries as features (N, C · image_size²), minus the bank's mean image.

    Without the mean, all cosine similarities are near 1 and the baseline is weaker than it should be.
    An image takes 4 · C · image_size² bytes: keep image_size small.
    """

    def flat(source: ImageSource, indices: Sequence[int]) -> Features:
        rows: list[Tensor] = []
        kept: list[int] = []
        for images, readable in still_images(
            source, indices, image_size=image_size, crop_ratio=crop_ratio, batch_size=batch_size
        ):
            rows.append(images.flatten(1).float() / 255)
            kept += readable
        return _collected(rows, kept, source, indices)

    bank_pixels, query_pixels = flat(bank, bank_indices), flat(queries, query_indices)
    mean_image = bank_pixels.values.mean(dim=0)
    bank_pixels.values.sub_(mean_image)
    query_pixels.values.sub_(mean_image)
    return bank_pixels, query_pixels


def _collected(rows: list[Tensor], kept: list[int], source: ImageSource, indices: Sequence[int]) -> Features:
    if not kept:
        first = source.name(int(indices[0])) if len(indices) else "no image was asked for"
        raise UserError(f"None of {len(indices)} images could be read (the first: {first}).")
    # cat outside inference_mode copies into ordinary tensors: a probe may train on them.
    return Features(torch.cat(rows), torch.tensor(kept, dtype=torch.int64))
