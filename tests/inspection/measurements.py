"""What `inspect` finds in sets of several kinds, without the images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dino_exp.inspection.measured import Channel, Measured


def channel(low: float, high: float, typical: tuple[float, float], mean: float, std: float) -> Channel:
    """Return a channel whose values are evenly distributed between the percentiles 0.1 and 99.9."""
    first, last = typical
    inner = [first + (last - first) * step / 254 for step in range(255)]
    percentiles = {0.1: first, 1.0: first, 50.0: mean, 99.0: last, 99.9: last}
    return Channel(low, high, mean, std, percentiles, 0, 0, (low, *inner, high))


def photographs(**changed: Any) -> Measured:
    """Return 200 labeled JPEGs of about 400 pixels."""
    found = Measured(
        place="/photographs/train",
        kind="image_folder",
        images=200,
        decoded=200,
        unreadable={},
        formats={"JPEG": 200},
        channel_counts={3: 200},
        bits={8: 200},
        shorter_sides={0.0: 300, 5.0: 333, 50.0: 375, 95.0: 500, 100.0: 600},
        longer_sides={0.0: 400, 5.0: 450, 50.0: 500, 95.0: 500, 100.0: 900},
        channels=tuple(channel(0, 255, (0, 255), mean, 51) for mean in (127.5, 102, 76.5)),
        exact_duplicates=[],
        near_duplicates=[],
        classes={"cat": 100, "dog": 100},
        decode_milliseconds=1.1,
        read_milliseconds=0.1,
        held_out="/photographs/val",
    )
    return replace(found, **changed)


def tiny(images: int = 30_000, **changed: Any) -> Measured:
    """Return PNGs of 32 pixels."""
    side = dict.fromkeys((0.0, 5.0, 50.0, 95.0, 100.0), 32)
    return photographs(
        images=images,
        decoded=2_000,
        formats={"PNG": 2_000},
        channel_counts={3: 2_000},
        bits={8: 2_000},
        shorter_sides=side,
        longer_sides=side,
        decode_milliseconds=0.1,
        **changed,
    )


def gray_12_bit(**changed: Any) -> Measured:
    """Return gray TIFFs of 16 bits that use 12 of them, some with a much brighter pixel."""
    return photographs(
        images=4_000,
        formats={"TIFF": 200},
        channel_counts={1: 200},
        bits={16: 200},
        value_type="uint16",
        channels=(channel(90, 65_535, (100.4, 4_000.2), 1_000, 600),),
        **changed,
    )


def ten_bands(**changed: Any) -> Measured:
    """Return floating-point images of 10 bands, the last of which is constant."""
    bands = [channel(0, 1.5 + band, (0.01, 1.0 + band), 0.5, 0.2) for band in range(9)]
    return photographs(
        images=60_000,
        formats={"NPY": 200},
        channel_counts={10: 200},
        bits={32: 200},
        value_type="float32",
        floating=True,
        shorter_sides=dict.fromkeys((0.0, 5.0, 50.0, 95.0, 100.0), 120),
        channels=(*bands, channel(7, 7, (7, 7), 7, 0)),
        **changed,
    )
