"""A look at a few images of a set, before anything is made of it: whether the settings are for them."""

from __future__ import annotations

import logging

import numpy as np

from dino_exp.data.content import ImagesWithContent
from dino_exp.data.decoding import Decoding
from dino_exp.data.source import CorruptImageError, UnsuitableImageError
from dino_exp.data.storage import spread
from dino_exp.data.undecodable import DeepError
from dino_exp.data.value_range import show
from dino_exp.errors import UserError
from dino_exp.parallel import distributed

log = logging.getLogger(__name__)

FEWEST_LEVELS = 32
"""Values of 256 between the darkest and the brightest one, below which a range is probably wrong."""


def check_images(images: ImagesWithContent) -> None:
    """Decode a few images, evenly spread.

    Raises UserError if the settings are not for one of them, and for ranges by which every image becomes one
    color. Says which channels become almost black or have a single value.
    """
    looked_at = spread(len(images))
    unsuitable: list[UnsuitableImageError] = []
    extremes = []
    for index in looked_at:
        try:
            image = images.read(index, smallest)
        except UnsuitableImageError as error:
            unsuitable.append(error)
        except CorruptImageError:
            pass
        else:
            pixels = image.numpy()
            extremes.append((pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2))))
    if unsuitable:
        raise _not_for(unsuitable, len(looked_at))
    decoding = images.decoding
    if extremes and (decoding.bands or decoding.range):
        _judge(np.array(extremes), decoding)


def smallest(height: int, width: int) -> int:
    """Return the factor by which an image is scaled down for a look at it: a `Shrink`."""
    return 8 if min(height, width) >= 8 else 1


def _not_for(unsuitable: list[UnsuitableImageError], looked_at: int) -> UserError:
    first = unsuitable[0]
    deep = [error.deep for error in unsuitable if error.deep]
    if not first.deep:
        return UserError(f"{first}.")
    kinds = {each.kind for each in deep}
    kind = kinds.pop() if len(kinds) == 1 else "f"
    all_of_them = DeepError(
        max(each.bits for each in deep),
        kind,
        min(each.low for each in deep),
        max(each.high for each in deep),
    )
    count = f"{len(deep)} of {looked_at}" if len(deep) < looked_at else f"the {looked_at}"
    shifted = ""
    if kind == "u" and all_of_them.bits == 16:
        shifted = " Earlier versions kept the upper 8 of 16 bits, which is data.range=[127.5,65407.5]."
    values = f"values {all_of_them.span()} in {count} image{'s' * (looked_at > 1)} looked at"
    return UserError(
        f"data.range is null, but {first.name} has {first.deep.depth()} ({values}): set "
        f"{all_of_them.setting()}, or data.range=[p0.1,p99.9] for each image's own.{shifted}"
    )


def _judge(extremes: np.ndarray, decoding: Decoding) -> None:
    """Say what is odd about the smallest and largest bytes (N, 2, C) of N images."""
    count, _, channels = extremes.shape
    lowest, highest = extremes[:, 0], extremes[:, 1]
    is_constant = (lowest == highest).all(axis=0)
    pairs = decoding.range or ()
    if is_constant.all() and pairs:
        raise UserError(
            f"data.range = {_shown(decoding)}: each of the {count} images looked at becomes one color "
            f"({lowest[0].tolist()} of 255); dino-exp inspect measures their values."
        )
    if not distributed.is_main():
        return
    for channel in range(channels):
        band = decoding.bands[channel] if decoding.bands else channel + 1
        low, high = int(lowest[:, channel].min()), int(highest[:, channel].max())
        if is_constant[channel]:
            log.warning("Band %d has a single value in each of the %d images looked at.", band, count)
        elif pairs and high - low < FEWEST_LEVELS:
            log.warning(
                "data.range = %s: in the %d images looked at, band %d becomes %d to %d of 0 to 255; dino-exp "
                "inspect measures its values.",
                *(_shown(decoding), count, band, low, high),
            )


def _shown(decoding: Decoding) -> str:
    pairs = [f"[{show(low)},{show(high)}]" for low, high in decoding.range or ()]
    return pairs[0] if len(pairs) == 1 else f"[{','.join(pairs)}]"
