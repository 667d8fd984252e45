"""What follows from the images themselves: how they are read, cut and changed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dino_exp.data.file_sets import absolute_path
from dino_exp.inspection.choice import Choice
from dino_exp.inspection.measured import Measured
from dino_exp.machine import Hardware

LEAST, ON_CPU, IN_PAPER = 16, 64, 224
"""Sides of a global crop in pixels: the least, the most without a GPU, and the paper's."""
WITHOUT_BLUR = 96
"""Pixels of a global crop below which a blur of the released strength leaves little to see."""
MOST_CORRUPT = 0.2
"""Share of unreadable images up to which they are skipped; above it something else is wrong."""
WITH_ALPHA = {"PNG", "WEBP", "GIF", "AVIF", "JPEG2000"}
"""Formats whose second or fourth channel is transparency."""


def decoded_channels(measured: Measured) -> tuple[int, str]:
    """Return data.channels, and why."""
    counts = measured.channel_counts
    most = max(counts, key=lambda channels: (counts[channels], channels))
    share = counts[most] / sum(counts.values())
    others = ", ".join(f"{count:,} have {channels}" for channels, count in counts.items() if channels != most)
    mixed = f"; {others}" if others else ""
    if most == 4 and set(measured.formats) <= WITH_ALPHA:
        return 3, "the fourth channel of these formats is transparency, which is ignored"
    if most == 2 and set(measured.formats) <= WITH_ALPHA:
        return 1, "the second channel of these formats is transparency, which is ignored"
    if most == 3 and _is_gray(measured):
        return 1, "stored as RGB, but the three channels have the same statistics: gray"
    if most == 1 and share < 0.99 and 3 in counts:
        return 3, f"{counts[1]:,} images are gray, which is repeated in three channels{mixed}"
    if most not in (1, 3) and others:
        return (
            most,
            f"{share:.0%} of the images have {most} channels; the others are unreadable with it{mixed}",
        )
    return most, f"{'all' if not others else f'{share:.1%} of the'} images have {most}{mixed}"


def _is_gray(measured: Measured) -> bool:
    first, *others = measured.channels
    return all((each.mean, each.std) == (first.mean, first.std) for each in others)


def constant_bands(measured: Measured) -> list[int]:
    """Return the channels, counted from 1, that have one value in all images; none for RGB and gray."""
    if len(measured.channels) <= 3:
        return []
    found = [number for number, each in enumerate(measured.channels, 1) if each.low == each.high]
    return found if len(found) < len(measured.channels) else []


def data_choices(measured: Measured) -> Iterator[Choice]:
    """Yield how the images are read."""
    yield Choice("data.root", str(absolute_path(measured.place)), "where they were inspected")
    constant = constant_bands(measured)
    kept = [index for index in range(len(measured.channels)) if index + 1 not in constant]
    channels, why = decoded_channels(measured)
    if constant:
        channels = len(kept)
        bands = [index + 1 for index in kept]
        named = ", ".join(map(str, constant))
        yield Choice("data.bands", bands, f"without those that have one value in all images: {named}")
        why = "the bands above"
    yield Choice("data.channels", channels, why)
    kept = (kept * channels)[:channels]
    limits = measured.value_range
    if limits is not None:
        yield Choice("data.range", *_range(measured, [limits[index] for index in kept]))
    means, deviations = measured.mean_and_std
    where = "of values in 0–1 after the range" if limits else "of values in 0–1"
    sample = f"measured on {measured.decoded:,} images, {where}"
    yield Choice("data.mean", [round(means[index], 4) for index in kept], sample)
    std = [max(round(deviations[index], 4), 0.001) for index in kept]
    yield Choice("data.std", std, sample)
    share = unreadable_share(measured)
    if 0.01 < share <= MOST_CORRUPT:
        limit = math.ceil(share * 100 + 1) / 100
        yield Choice(
            "data.max_corrupt",
            limit,
            f"{share:.1%} of the inspected images could not be read and are skipped; above the default, "
            "0.01, the run would end",
        )


def _range(measured: Measured, pairs: list[tuple[float, float]]) -> tuple[list[Any], str]:
    whole = not measured.value_type.startswith("float")
    written = [[_rounded(low, whole, math.floor), _rounded(high, whole, math.ceil)] for low, high in pairs]
    same = all(each == written[0] for each in written)
    low = min(each.low for each in measured.channels)
    high = max(each.high for each in measured.channels)
    reason = (
        f"{measured.value_type} values go from {low:g} to {high:g}; these are the percentiles 0.1 and 99.9 "
        f"of {'the values' if same else 'each channel'}, and become 0 and 255, so that a few extreme "
        "pixels do not take the contrast of all others. If the values are in physical units (Hounsfield, "
        "reflectance), limits with a meaning are better"
    )
    return (written[0] if same else written), reason


def _rounded(value: float, whole: bool, rounding: Callable[[float], int]) -> float:
    return rounding(value) if whole else float(f"{value:.6g}")


def unreadable_share(measured: Measured) -> float:
    """Return the share of the images that were looked at and could not be read."""
    unreadable = sum(map(len, measured.unreadable.values()))
    return unreadable / max(1, unreadable + measured.decoded)


@dataclass(frozen=True)
class Sides:
    """Sides in pixels."""

    crop: int
    """Of a global crop."""
    patch: int

    @classmethod
    def fitting(cls, measured: Measured, hardware: Hardware) -> Sides:
        """Return the largest that enlarge at most 5 % of the images, up to what the machine can train."""
        most = ON_CPU if hardware.gpu is None else IN_PAPER
        crop = min(max(measured.shorter_sides[5.0], LEAST), most)
        patch = 16 if crop >= 128 else 8 if crop >= 64 else 4  # about 8 x 8 to 15 x 15 patches
        return cls(crop // patch * patch, patch)

    @property
    def local(self) -> int:
        """Of a local crop: 3/7 of the global one, as 96 of 224."""
        return self.patch * math.ceil(self.crop / self.patch * 3 / 7)

    @property
    def patches(self) -> int:
        """Patches along the side of a global crop."""
        return self.crop // self.patch


def crop_choices(measured: Measured, hardware: Hardware) -> Iterator[Choice]:
    """Yield the sizes of the crops."""
    sides, shorter = Sides.fitting(measured, hardware), measured.shorter_sides[5.0]
    seen = f"95 % of the images have at least {shorter} pixels on the shorter side"
    if shorter < LEAST:
        why = f"the least that makes sense; {seen}, so that most are enlarged"
    elif hardware.gpu is None and sides.crop == ON_CPU:
        why = f"{seen}, but without a GPU larger crops take hours"
    elif sides.crop == IN_PAPER:
        why = f"the paper's; {seen}"
    else:
        why = f"{seen}, and larger crops would enlarge them; a multiple of {sides.patch}"
    yield Choice("crops.global_size", sides.crop, why)
    if hardware.gpu is None:
        return  # no local crops
    why = f"3/7 of {sides.crop}, as 96 of 224 in the paper, in multiples of the patch"
    yield Choice("crops.local_size", sides.local, why)


def augment_choice(measured: Measured, hardware: Hardware) -> Choice:
    """Return the augmentation."""
    channels = decoded_channels(measured)[0]
    if channels > 3:
        return Choice(
            "augment", "satellite", f"{channels} channels are taken for bands of a satellite; see above"
        )
    if measured.value_type != "uint8" and "DICOM" not in measured.formats:
        why = f"{measured.value_type} values in 1 to 3 channels are taken for microscopy; see above"
        return Choice("augment", "microscopy", why)
    if Sides.fitting(measured, hardware).crop < WITHOUT_BLUR:
        why = (
            f"the released strengths, without blur, which leaves little of crops below {WITHOUT_BLUR} pixels"
        )
        return Choice("augment", "small", why)
    return Choice("augment", "released", "the released code's, for photographs")


def words_of(counts: dict[str, int] | dict[int, int]) -> str:
    """Return counts as text: the most frequent first, at most five."""
    ordered = sorted(counts.items(), key=lambda each: -each[1])
    shown = [f"{name} ({count:,})" for name, count in ordered[:5]]
    return ", ".join([*shown, f"{len(ordered) - 5} more"] if len(ordered) > 5 else shown)


def facts(measured: Measured) -> dict[str, str]:
    """Return what was measured, in words, by name."""
    shorter, longer = measured.shorter_sides, measured.longer_sides
    low = [min(each.low for each in measured.channels), max(each.high for each in measured.channels)]
    found = {
        "images": f"{measured.images:,}, of which {measured.decoded:,} were decoded",
        "formats": words_of(measured.formats),
        "channels": words_of(measured.channel_counts),
        "bits per value": words_of(measured.bits),
        "values": f"{measured.value_type}, {low[0]:g} to {low[1]:g}",
        "shorter side": f"{shorter[0.0]} to {shorter[100.0]} pixels, median {shorter[50.0]}",
        "longer side": f"{longer[0.0]} to {longer[100.0]} pixels, median {longer[50.0]}",
        "unreadable": words_of({reason: len(names) for reason, names in measured.unreadable.items()})
        or "none",
        "exact duplicates": f"{sum(len(group) - 1 for group in measured.exact_duplicates):,}",
        "near duplicates": f"{sum(len(group) - 1 for group in measured.near_duplicates):,}",
        "classes": "none" if measured.classes is None else f"{len(measured.classes):,}",
        "held-out images": "none" if measured.held_out is None else measured.held_out,
        "decoding": f"{measured.decode_milliseconds:.2g} ms per image",
    }
    return {name: re.sub(r"\s+", " ", text) for name, text in found.items()}
