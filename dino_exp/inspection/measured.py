"""What was found in a set of images, as numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)
"""Percentiles of the values of a channel."""
SIDES = (0.0, 5.0, 50.0, 95.0, 100.0)
"""Percentiles of the sides of images."""
QUANTILES = 257
"""Evenly spaced quantiles of a channel's values, from which mean and deviation after any range follow."""


@dataclass(frozen=True)
class Channel:
    """The stored values of one channel, over all images that were decoded.

    In mean, std and percentiles every image counts the same, whatever its size, as in training.
    """

    low: float
    high: float
    mean: float
    std: float
    percentiles: dict[float, float]
    """Value by percentile: 0.1, 1, 50, 99, 99.9."""
    constant: int
    """Images in which the channel has one value."""
    not_finite: int
    """Images with NaN or infinite values in it; these values are in no other number."""
    quantiles: tuple[float, ...] = ()
    """The values at 0, 1/256, ..., 1 of all, from low to high."""

    def after_range(self, low: float, high: float) -> tuple[float, float]:
        """Return mean and std in 0–1 after values of `low` became 0, those of `high` 1, and others were cut.

        Exact where nothing is cut; otherwise from the quantiles.
        """
        if low <= self.low and self.high <= high:
            return (self.mean - low) / (high - low), self.std / (high - low)
        fine = np.interp(
            np.linspace(0, QUANTILES - 1, 16 * QUANTILES), np.arange(QUANTILES), np.array(self.quantiles)
        )
        cut = np.clip((fine - low) / (high - low), 0, 1)
        return float(cut.mean()), float(cut.std())


@dataclass(frozen=True)
class Measured:
    """What `dino-exp inspect` has found."""

    place: str
    """The path as typed."""
    kind: str
    """The option of `data`: image_folder, webdataset or huggingface."""
    images: int
    """Images in the set."""
    decoded: int
    """Images that were decoded and measured, evenly spread over the set."""
    unreadable: dict[str, list[str]]
    """Names of unreadable images by reason."""
    formats: dict[str, int]
    """Images by format: JPEG, PNG, TIFF, NPY."""
    channel_counts: dict[int, int]
    """Images by number of channels."""
    bits: dict[int, int]
    """Images by bits per value."""
    shorter_sides: dict[float, int]
    """Shorter side in pixels by percentile: 0, 5, 50, 95, 100."""
    longer_sides: dict[float, int]
    channels: tuple[Channel, ...]
    """Of the images that have the most frequent number of channels and type of values."""
    exact_duplicates: list[list[str]]
    """Groups of images with equal bytes, among all images of the set."""
    near_duplicates: list[list[str]]
    """Groups of images that look alike, among the decoded ones; of exact duplicates only one is in them."""
    classes: dict[str, int] | None
    """Images by class; None without labels."""
    decode_milliseconds: float
    """CPU time to read and decode one image, on average."""
    read_milliseconds: float
    """Of which reading its bytes."""
    floating: bool = False
    """Values are floating-point numbers."""
    notes: list[str] = field(default_factory=list)
    """What else a user should know, in sentences."""
    value_type: str = "uint8"
    """NumPy's name of the type of the stored values that `channels` describes."""
    aspect_ratios: dict[float, float] = field(default_factory=dict)
    """Longer side / shorter side by percentile: 50, 95, 100."""
    held_out: str | None = None
    """The held-out images found beside the set, as `data.val_root=auto` finds them."""

    @property
    def value_range(self) -> list[tuple[float, float]] | None:
        """What should become 0 and what 255 in each channel; None for bytes, which stay as they are.

        The percentiles 0.1 and 99.9, so that a few extreme pixels do not take the contrast of all others.
        """
        if self.value_type == "uint8":
            return None
        ranges = []
        for channel in self.channels:
            low, high = channel.percentiles[0.1], channel.percentiles[99.9]
            if low >= high:  # almost constant
                low, high = channel.low, channel.high
            ranges.append((low, high if high > low else low + 1))
        return ranges

    @property
    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """`data.mean` and `data.std`: per channel, of values in 0–1 after `value_range`."""
        ranges = self.value_range or [(0.0, 255.0)] * len(self.channels)
        pairs = [each.after_range(*limits) for each, limits in zip(self.channels, ranges, strict=True)]
        return [mean for mean, _ in pairs], [std for _, std in pairs]

    def to_json(self) -> str:
        """Return a text from which `from_json` makes the same object."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """Read a text of `to_json`. Raises ValueError, TypeError or KeyError for any other text."""
        stored: dict[str, Any] = json.loads(text)
        for name in ("channel_counts", "bits"):
            stored[name] = {int(key): value for key, value in stored[name].items()}
        for name in ("shorter_sides", "longer_sides", "aspect_ratios"):
            stored[name] = _by_percentile(stored[name])
        stored["channels"] = tuple(
            Channel(
                **channel
                | {
                    "percentiles": _by_percentile(channel["percentiles"]),
                    "quantiles": tuple(channel["quantiles"]),
                }
            )
            for channel in stored["channels"]
        )
        return cls(**stored)


def _by_percentile(stored: dict[str, Any]) -> dict[float, Any]:
    return {float(key): value for key, value in stored.items()}
