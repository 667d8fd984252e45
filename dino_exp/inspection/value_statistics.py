"""Statistics of the stored values of many images, gathered one image at a time in little memory."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dino_exp.inspection.measured import PERCENTILES, QUANTILES, Channel

COUNTED = {"uint8": 0, "int8": 128, "uint16": 0, "int16": 32768}
"""Types whose values are counted one by one, with what is added to make them positions in a histogram."""
COUNTED_CHANNELS = 16
"""Most channels with a histogram of 65,536 values each."""
AT_ONCE = 2**20
"""Values that are counted at once: NumPy makes 8 bytes of each."""
KEPT = 2**20
"""Pixels that are kept of all images where values are not counted."""
MOST_OF_AN_IMAGE = 4096
GOLDEN = 0.6180339887498949


class ValueStatistics:
    """Range, mean, deviation and quantiles per channel of images with one number of channels and one type.

    Every image has the same weight, whatever its size, because a training takes as many crops of each.
    Integers of 8 and 16 bits are counted, so that all numbers are exact. Of other types range, mean and
    deviation are exact, and quantiles are those of pixels evenly spread over the images.

    Args:
        channels: C.
        kind: NumPy's name of the type.
        images: how many will be added, by which the pixels that are kept are shared out.
    """

    def __init__(self, channels: int, kind: str, images: int) -> None:
        self.kind = kind
        self.images = 0
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)
        self.constant, self.not_finite = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
        self.counts: np.ndarray | None = None  # (C, values) shares of images
        if kind in COUNTED and channels <= COUNTED_CHANNELS:
            self.counts = np.zeros((channels, 256 if kind.endswith("t8") else 65536))
        self.weight = np.zeros(channels)  # images with a finite value in the channel
        self.mean, self.squares = np.zeros(channels), np.zeros(channels)  # as in Welford's method
        self.samples: list[np.ndarray] = []  # (pixels, C) each
        self._of_an_image = int(np.clip(KEPT // max(images, 1), 1, MOST_OF_AN_IMAGE))

    def add(self, values: np.ndarray, index: int) -> None:
        """Add an image (H, W, C); its index moves the pixels that are kept of it."""
        self.images += 1
        pixels = values.reshape(-1, values.shape[2])
        if self.counts is not None:
            counts = _counted(values, COUNTED[self.kind], self.counts.shape[1])
            self.counts += counts / len(pixels)
            for channel, found in enumerate(counts):
                present = np.flatnonzero(found)
                self._extremes(channel, float(present[0]), float(present[-1]))
            return
        for channel in range(pixels.shape[1]):
            column = pixels[:, channel].astype(np.float64)
            finite = column[np.isfinite(column)]
            self.not_finite[channel] += len(finite) < len(column)
            if len(finite):
                self._extremes(channel, finite.min(), finite.max())
                self._moments(channel, 1.0, finite.mean(), finite.var())
        count = self._of_an_image  # of a smaller image some pixels more than once: its weight is the same
        where = (np.arange(count) + index * GOLDEN % 1.0) * len(pixels) / count
        self.samples.append(pixels[where.astype(np.int64)].astype(np.float64))

    def merge(self, other: ValueStatistics) -> None:
        """Add the images of another one, of the same channels and type."""
        self.images += other.images
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.constant += other.constant
        self.not_finite += other.not_finite
        if self.counts is not None and other.counts is not None:
            self.counts += other.counts
        for channel in np.flatnonzero(other.weight).tolist():
            share = other.weight[channel]
            self._moments(channel, share, other.mean[channel], other.squares[channel] / share)
        self.samples += other.samples

    def results(self) -> tuple[Channel, ...]:
        """Return what is known of each channel; of one without finite values all numbers are 0."""
        samples = np.concatenate(self.samples) if self.samples else np.empty((0, len(self.low)))
        return tuple(self._result(channel, samples[:, channel]) for channel in range(len(self.low)))

    def _result(self, channel: int, samples: np.ndarray) -> Channel:
        shares = np.array([*PERCENTILES, *np.linspace(0, 100, QUANTILES)])
        low, high = self.low[channel], self.high[channel]
        if self.counts is not None:
            counts, offset = self.counts[channel], COUNTED[self.kind]
            values = np.arange(len(counts)) - offset
            low, high = low - offset, high - offset
            mean = counts @ values / counts.sum()
            variance = counts @ (values - mean) ** 2 / counts.sum()
            up_to = np.cumsum(counts)
            at = np.searchsorted(up_to, shares / 100 * up_to[-1] * (1 - 1e-12))
            quantiles = values[np.minimum(at, len(values) - 1)].astype(np.float64)
        else:
            samples = samples[np.isfinite(samples)]
            if not len(samples) or not self.weight[channel]:
                low = high = 0.0
                samples = np.zeros(1)
            mean, variance = self.mean[channel], self.squares[channel] / max(self.weight[channel], 1)
            quantiles = np.percentile(samples, shares)
        curve = quantiles[len(PERCENTILES) :]
        curve[0], curve[-1] = low, high
        return Channel(
            low=float(low),
            high=float(high),
            mean=float(mean),
            std=float(np.sqrt(variance)),
            percentiles=dict(zip(PERCENTILES, quantiles.tolist(), strict=False)),
            constant=int(self.constant[channel]),
            not_finite=int(self.not_finite[channel]),
            quantiles=tuple(curve.tolist()),
        )

    def _extremes(self, channel: int, low: float, high: float) -> None:
        self.low[channel] = min(self.low[channel], low)
        self.high[channel] = max(self.high[channel], high)
        self.constant[channel] += low == high

    def _moments(self, channel: int, weight: float, mean: float, variance: float) -> None:
        total = self.weight[channel] + weight
        difference = mean - self.mean[channel]
        self.squares[channel] += weight * variance + difference**2 * self.weight[channel] * weight / total
        self.mean[channel] += difference * weight / total
        self.weight[channel] = total


def _counted(values: np.ndarray, offset: int, length: int) -> np.ndarray:
    """Return how often each value occurs in each channel, (C, length)."""
    channels = values.shape[2]
    if values.dtype == np.uint8 and channels in (1, 3, 4):  # a third of the time
        contiguous = np.ascontiguousarray(values[:, :, 0] if channels == 1 else values)
        return np.array(Image.fromarray(contiguous).histogram()).reshape(channels, 256)
    counts = np.zeros((channels, length), np.int64)
    pixels = values.reshape(-1, channels)
    step = AT_ONCE // channels
    for start in range(0, len(pixels), step):
        part = pixels[start : start + step].astype(np.int64) + offset
        for channel in range(channels):
            counts[channel] += np.bincount(part[:, channel], minlength=length)
    return counts
