"""What `dino-exp inspect` takes for near duplicates: how similar unrelated images and copies of one are.

    python -m benchmarks.near_duplicates FOLDER      # of images, none of which is a copy of another

Prints the highest similarities of two images of the folder, and of each kind of copy the lowest similarity to
its original and how many are found.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dino_exp.data.image_scan import images_in
from dino_exp.inspection.duplicates import ALIKE, thumbnail, whitened

MOST = 2000


def as_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


def cropped(image: Image.Image, left: float, others: float) -> Image.Image:
    width, height = image.size
    top, right, bottom = height * others, width * (1 - others), height * (1 - others)
    return image.crop((round(width * left), round(top), round(right), round(bottom)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG of quality 50": as_jpeg,
    "half the size": lambda image: image.resize((max(8, image.width // 2), max(8, image.height // 2))),
    "gray": lambda image: image.convert("L"),
    "brightness x 1.15": lambda image: image.point(lambda value: min(255, int(value * 1.15))),
    "1 % cut off at the left": lambda image: cropped(image, 0.01, 0),
    "3 % cut off on all sides": lambda image: cropped(image, 0.03, 0.03),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    images = [Image.open(path).convert("RGB") for path in images_in(parser.parse_args().folder)[:MOST]]

    def thumbnails(change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
        return np.stack([thumbnail(np.atleast_3d(np.asarray(change(image)))) for image in images])

    own = thumbnails(lambda image: image)
    features = whitened(own)
    unrelated = np.sort((features @ features.T)[np.triu_indices(len(own), 1)])[::-1]
    print(f"{len(own)} images, {len(unrelated):,} pairs: most {np.round(unrelated[:5], 2)}")
    print(f"{(unrelated > ALIKE).sum()} of them above {ALIKE}")
    for name, change in COPIES.items():
        both = whitened(np.concatenate([own, thumbnails(change)]))
        alike = (both[: len(own)] * both[len(own) :]).sum(axis=1)
        print(f"{name}: least {alike.min():.2f}, {(alike > ALIKE).mean():.1%} found")


if __name__ == "__main__":
    main()
