"""Other people's data as an `ImageSource`: a torch Dataset, an array, a tensor or a list of files."""

from __future__ import annotations

from typing import Any

from dino_exp.data.source import ImageSource, Splits


def as_source(data: Any, channels: int, title: str = "images") -> ImageSource:
    """Return an `ImageSource` of what somebody has, read item by item and checked.

    Args:
        data: an `ImageSource` (returned as it is); a map-style `torch.utils.data.Dataset` or any sequence
            whose items are an image or (image, label); a uint8 array or tensor (N, C, H, W) or (N, H, W, C);
            a list of paths. An image is a PIL image, a uint8 array or tensor, or a path.
        channels: `data.channels`.
        title: what the images are called in messages, which add the index.

    Raises UserError for what cannot be images.
    """
    raise NotImplementedError


def as_splits(data: Any, channels: int) -> Splits:
    """Return `Splits` of what somebody's function returned: Splits, one set, or a pair (train, held out)."""
    raise NotImplementedError
