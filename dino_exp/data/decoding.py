"""How stored images become bytes: part of a run's identity, and of the names of what is made from them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from dino_exp.data.pillow_files import errors_in_words, open_image
from dino_exp.data.stored_values import StoredValues, pillow_values, stored_values
from dino_exp.data.undecodable import DeepError, UndecodableError, UnsuitableError, check_size
from dino_exp.data.value_range import Pair, fits_bytes, is_measured, pairs_of, show, to_bytes

try:
    import simplejpeg
except ImportError:  # no wheel for this Python: Pillow reads JPEG to the same values, more slowly
    simplejpeg = None

Shrink = Callable[[int, int], int]
"""A function from an image's height and width to the factor by which it is scaled down while it is decoded:
1, 2, 4 or 8, and no more than its shorter side."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue, as in Pillow."""


@dataclass(frozen=True)
class Decoding:
    """The settings of `data` that say how a stored image becomes uint8 (C, H, W)."""

    channels: int = 3
    """C; 3 is RGB and 1 luminance, see `decode_image`."""
    backend: str = "fast"
    """`data.backend`; `pil` decodes everything with Pillow, as the released code does."""
    bands: tuple[int, ...] | None = None
    """`data.bands`: which channels of the file are read, counted from 1, in this order; None is all."""
    range: tuple[Pair, ...] | None = None
    """`data.range`: what becomes 0 and what 255, one pair for all channels or one for each; None leaves
    bytes as they are."""

    @classmethod
    def of(
        cls,
        channels: int,
        backend: str,
        bands: Sequence[int] | None = None,
        range: Sequence[object] | None = None,
    ) -> Decoding:
        """Return the settings of a configuration, whose lists are plain ones and have been checked."""
        pairs = None if range is None else pairs_of(range)
        return cls(channels, backend, None if bands is None else tuple(bands), pairs)

    @classmethod
    def of_config(cls, data: Any) -> Decoding:
        """Return the settings of a group `data`, of which generated and downloaded sets have fewer."""
        return cls.of(data.channels, data.backend, getattr(data, "bands", None), getattr(data, "range", None))

    @property
    def key(self) -> tuple[object, ...]:
        """What fingerprints hold; without what came later, so that earlier caches keep their names."""
        later = (self.bands, self.range)
        return self.channels, self.backend, *(later if any(later) else ())


def decode(content: bytes, decoding: Decoding, shrink: Shrink | None = None) -> torch.Tensor:
    """Decode the bytes of one file to uint8 (C, H, W), as `decode_image` does.

    Raises UndecodableError with the reason.
    """
    if content.startswith(b"\xff\xd8\xff"):
        with errors_in_words():
            stored = _jpeg(content, decoding, shrink)
    else:
        unset = decoding.bands is None and decoding.range is None
        stored = stored_values(content, keep_cmyk=_keeps_cmyk(decoding), first_page=unset)
    values = _with_channels(stored, decoding)
    if decoding.range is not None:
        values = _in_range(values, stored.bits, decoding)
    elif values.dtype != np.uint8:
        raise _deep(values, stored.bits)
    if values.shape[2] < decoding.channels:  # gray as RGB
        values = np.repeat(values, decoding.channels, axis=2)
    return torch.from_numpy(np.require(values, requirements=["C", "W"])).permute(2, 0, 1)


def _keeps_cmyk(decoding: Decoding) -> bool:
    return decoding.bands is not None or decoding.channels not in (1, 3)


def _jpeg(content: bytes, decoding: Decoding, shrink: Shrink | None) -> StoredValues:
    image = open_image(io.BytesIO(content))
    check_size(image.height, image.width)
    if image.format == "JPEG" and decoding.channels in (1, 3):
        # what is measured in an image must not depend on its crops
        whole = shrink is None or (decoding.range is not None and is_measured(decoding.range))
        factor = 1 if whole or shrink is None else shrink(image.height, image.width)
        if factor > 1:
            image.draft(image.mode, (image.width // factor, image.height // factor))
        elif decoding.backend == "fast" and decoding.channels == 3 and not _keeps_cmyk(decoding):
            decoded = _fast_jpeg(content) if image.mode in ("RGB", "L") else None
            if decoded is not None:
                return StoredValues(decoded, "JPEG", 8)
    return pillow_values(image, content, _keeps_cmyk(decoding))


def _fast_jpeg(content: bytes) -> np.ndarray | None:
    """Decode to RGB as Pillow does, by libjpeg-turbo; None where that fails and Pillow is to try."""
    if simplejpeg is None:
        return None
    try:
        decoded: np.ndarray = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError:  # damaged, or a kind that only Pillow knows
        return None
    return decoded


def _with_channels(stored: StoredValues, decoding: Decoding) -> np.ndarray:
    """Return the values (H, W, channels) of the chosen bands; (H, W, 1) where gray will be repeated."""
    values, channels, bands = stored.values, decoding.channels, decoding.bands
    found = values.shape[2]
    if bands is not None:
        if max(bands) > found or _is_channels_first(stored):
            raise UnsuitableError(f"has {_channels(stored)}, but data.bands = {list(bands)}")
        return values[:, :, [band - 1 for band in bands]]
    if found == channels and channels not in (1, 3):
        return values
    if channels in (1, 3) and found in (1, 2):
        return values[:, :, :1]
    if channels == 3 and found in (3, 4):
        return values[:, :, :3]
    if channels == 1 and found in (3, 4):
        return _luminance(values[:, :, :3])
    more = "; choose with data.bands" if found > channels and not _is_channels_first(stored) else ""
    raise UnsuitableError(f"has {_channels(stored)}, but data.channels is {channels}{more}")


def _channels(stored: StoredValues) -> str:
    """Return in words how many channels a file has, and why these may be others than expected."""
    found = stored.values.shape[2]
    count = f"{found:,} channel{'s' * (found > 1)}"
    if _is_channels_first(stored):
        return f"{count}, as an array of the shape {stored.values.shape}, which must be (H, W, channels)"
    return count


def _is_channels_first(stored: StoredValues) -> bool:
    """Return whether an array seems to be (channels, H, W), which is not guessed at."""
    first, *others = stored.values.shape
    return stored.format == "NPY" and first < min(others)


def _luminance(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(values)).convert("L"))[:, :, None]
    return values.astype(np.float64) @ np.array(LUMINANCE)[:, None]


def _in_range(values: np.ndarray, bits: int, decoding: Decoding) -> np.ndarray:
    assert decoding.range is not None
    if values.dtype == np.uint8 and not fits_bytes(decoding.range):
        low, high = next(pair for pair in decoding.range if not fits_bytes((pair,)))
        raise UnsuitableError(
            f"has {bits} bits per value, and [{show(low)},{show(high)}] of data.range is for more; keep "
            "images of different depths apart, or use words such as data.range=[p0.5,p99.5]"
        )
    if values.dtype.kind == "f":
        bad = (~np.isfinite(values)).sum(axis=(0, 1))
        if bad.any():
            channel = int(bad.argmax())
            band = decoding.bands[channel] if decoding.bands else channel + 1
            raise UndecodableError(f"{bad[channel]:,} values of band {band} are NaN or infinite")
    return to_bytes(values, decoding.range)


def _deep(values: np.ndarray, bits: int) -> UndecodableError:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        return UndecodableError("all values are NaN or infinite")
    return DeepError(bits, values.dtype.kind, float(finite.min()), float(finite.max()))
