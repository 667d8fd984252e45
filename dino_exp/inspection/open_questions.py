"""What images do not tell, and the user may know."""

from __future__ import annotations

from collections.abc import Iterator

from dino_exp.inspection.image_choices import MOST_CORRUPT, decoded_channels, unreadable_share
from dino_exp.inspection.measured import Measured
from dino_exp.machine import Hardware

FEW = 5_000
"""Images below which others' weights are mentioned."""


def open_questions(measured: Measured, hardware: Hardware) -> Iterator[str]:
    """Yield what is not known, or stands in the way, with the keys to set."""
    channels = decoded_channels(measured)[0]
    photographs = measured.value_type == "uint8" and channels <= 3
    share = unreadable_share(measured)
    if share > MOST_CORRUPT:
        yield (
            f"{share:.0%} of the inspected images cannot be read, and a run ends above data.max_corrupt = "
            "0.01: mend or remove them first."
        )
    deep = sum(count for bits, count in measured.bits.items() if bits > 8)
    if len(measured.bits) > 1 and deep:
        yield (
            f"Depths are mixed: {deep:,} images have more than 8 bits per value. One data.range counts for "
            "all, so their values must have one meaning; otherwise train on the images of one depth."
        )
    if photographs and channels == 3:
        yield (
            "Whether color carries what matters. Hue and saturation are augmented a little, as for "
            "photographs. If color counts (stains, minerals, ripeness): augment.hue=0 augment.saturation=0 "
            "augment.gray=0. If it means nothing and differs from image to image, the network learns to tell "
            "images by it and little else: augment.hue=0.5 augment.saturation=0.4."
        )
    if not photographs:
        yield (
            "What the images are of. Bands of a satellite: augment=satellite. Stained or fluorescent "
            "cells: augment=microscopy, or in four channels or more augment=multiplex. All three exchange "
            "up and down; if there is an upright (X-rays, scans of a body, depth), augment=released."
        )
    yield (
        "Whether an image means the same after a flip. Left and right are exchanged; for text, or where the "
        "side counts, augment.flip=0."
    ) + (
        " Where nothing is up or right (cells, views from the air): augment.vertical_flip=0.5 "
        "augment.quarter_turns=1."
        if photographs
        else ""
    )
    least = 25 if hardware.gpu is None else 40
    yield (
        f"Whether the objects fill the image. Global crops show {least} to 100 % of its area and are taken "
        "to show the same thing; if objects are small in large scenes, cut the images into tiles first."
    )
    count = sum(len(group) - 1 for group in (*measured.exact_duplicates, *measured.near_duplicates))
    if count:
        yield (
            f"Whether {count:,} duplicates are wanted. They count several times, and held-out images with a "
            "duplicate here make k-NN look better than it is (frames of a video, patches of a slide)."
        )
    if measured.classes is None or measured.held_out is None:
        what = "labels" if measured.classes is None else "held-out images"
        yield (
            f"Whether it learns: there are no {what}, so k-NN is off. A few hundred labeled images tell: "
            "data.probe.train and data.probe.val."
        )
    if measured.images < FEW:
        yield (
            f"Whether {measured.images:,} images are enough to train from nothing. Weights of others to "
            "begin with: init_from (docs/weights.md)."
        )
    recipe = "" if hardware.gpu is None else ", and no run like this one on a GPU was measured by us"
    yield (
        f"How good it becomes: no value was tuned on these images{recipe}. τ_t, λ and K are the first to "
        "try (docs/sweep.md)."
    )
    yield from measured.notes
