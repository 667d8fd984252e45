"""Images in memory, as others' data sets hold them, converted to the bytes that crops are cut from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

ACCEPTED = "a PIL image, a uint8 array or tensor (H, W), (H, W, C) or (C, H, W), or a path"
"""What an image may be, for messages."""


class NoImageError(Exception):
    """A value that cannot be taken for an image, in words."""


def image_bytes(value: Any, channels: int) -> torch.Tensor:
    """Return a copy of an image as uint8 (C, H, W), laid out pixel by pixel.

    Channels are converted as in `decode_image`: 3 is RGB and 1 luminance, whatever of gray, gray with alpha,
    RGB or RGBA the image is; for any other number it must have that many.

    Args:
        value: a PIL image of any mode of 8 bits, or a uint8 array or tensor (H, W), (H, W, C) or (C, H, W).
        channels: `data.channels`.

    Raises:
        NoImageError: it is none of these.
    """
    if isinstance(value, Image.Image):
        values = _of_pil(value, channels)
    elif isinstance(value, torch.Tensor):
        values = _of_array(value.detach().cpu().numpy(), channels)
    elif isinstance(value, np.ndarray):
        values = _of_array(value, channels)
    else:
        raise NoImageError(f"{type(value).__name__}, and not an image: {ACCEPTED}")
    if not values.size:
        raise NoImageError(f"an image of {values.shape[1]} x {values.shape[0]} pixels")
    return torch.from_numpy(np.array(values, order="C")).permute(2, 0, 1)


def _of_pil(image: Image.Image, channels: int) -> np.ndarray:
    """Return uint8 (H, W, channels)."""
    if image.mode == "F" or image.mode.startswith("I"):
        raise NoImageError(
            f"a PIL image of mode {image.mode}, more than 8 bits per value; map the values that matter to "
            "0-255 in the data set"
        )
    if channels == 3:
        return np.asarray(image.convert("RGB"))
    if channels == 1:
        gray = image if image.mode in ("L", "1") else image.convert("RGB")
        return np.asarray(gray.convert("L"))[:, :, None]
    values = np.asarray(image)
    values = values if values.ndim == 3 else values[:, :, None]
    if image.mode == "P" or values.shape[2] != channels:
        raise NoImageError(f"a PIL image of mode {image.mode}, and data.channels is {channels}")
    return values


def _of_array(values: np.ndarray, channels: int) -> np.ndarray:
    """Return uint8 (H, W, channels)."""
    if values.dtype.kind == "f":
        raise NoImageError(
            f"{values.dtype} values; give the images as uint8, as they are before ToTensor and Normalize: "
            "DINO cuts its own crops, and normalizes them by data.mean and data.std"
        )
    if values.dtype != np.uint8:
        raise NoImageError(f"{values.dtype} values; map those that matter to 0-255 and give uint8")
    values = _channels_last(values, channels)
    if values.shape[2] == channels or not values.size:
        return values
    return _of_pil(
        Image.fromarray(np.ascontiguousarray(values.squeeze(2) if values.shape[2] == 1 else values)), channels
    )


def _channels_last(values: np.ndarray, channels: int) -> np.ndarray:
    """Return (H, W, C) of (H, W), (H, W, C) or (C, H, W): the channels are where their number is possible."""
    if values.ndim not in (2, 3):
        raise NoImageError(f"shape {values.shape}; an image is (H, W), (H, W, C) or (C, H, W)")

    def fits(count: int) -> bool:
        return count == channels or (channels in (1, 3) and 1 <= count <= 4)

    if values.ndim == 2:
        if not fits(1):
            raise NoImageError(f"shape {values.shape}: one channel, and data.channels is {channels}")
        return values[:, :, None]
    first, last = fits(values.shape[0]), fits(values.shape[2])
    if first and last:
        raise NoImageError(
            f"shape {values.shape}: both the first and the last could be the channels; give PIL images"
        )
    if not first and not last:
        raise NoImageError(
            f"shape {values.shape}: neither the first nor the last fits data.channels = {channels}"
        )
    return values if last else values.transpose(1, 2, 0)
