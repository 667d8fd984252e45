"""Small images to try the tutorials on, where none of one's own are at hand.

    python examples/make_images.py photos|cells|satellite|film|archive [NUMBER OF TRAINING IMAGES]

writes into the working folder what the page in docs/tutorials/ begins with. There are four classes, which
differ in their patterns, and in `photos`, `film` and `archive` a little in color.
"""

from __future__ import annotations

import colorsys
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("stripes", "checks", "dots", "rings")
SIDE = 64


def pattern(label: int, random: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Return where the pattern of a class is, booleans (side, side)."""
    y, x = np.mgrid[:side, :side] - random.uniform(side / 4, side * 3 / 4, (2, 1, 1))
    turn, period = random.uniform(-0.4, 0.4), random.uniform(0.19, 0.28) * side
    u, v = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    a, b, ring = (np.sin(2 * np.pi * each / period) for each in (u, v, np.hypot(u, v)))
    return [a > 0, a * b > 0, np.minimum(a, b) > 0, ring > 0][label]


def colors(label: int, random: np.random.Generator) -> np.ndarray:
    """Return two colors of 0 to 255, (2, 3): one of the class, and any one for the background."""
    hue, saturation = label / 4 + random.normal(0, 0.05), random.uniform(0.5, 1)
    own = colorsys.hsv_to_rgb(hue % 1, saturation, 1)
    return np.array([own, random.uniform(0, 1, 3)]) * random.uniform(80, 230, (2, 1))


def photo(label: int, random: np.random.Generator) -> np.ndarray:
    """Return a pattern in two colors, uint8 (side, side, 3)."""
    noise = random.normal(0, 6, (SIDE, SIDE, 3))
    return np.clip(
        np.where(pattern(label, random)[..., None], *colors(label, random)) + noise, 0, 255
    ).astype(np.uint8)


def cell(label: int, random: np.random.Generator) -> np.ndarray:
    """Return 12 bits in uint16 (side, side): a dim pattern in values up to 400, and in few images a bright
    grain of dust."""
    middle, half = random.uniform(150, 250), random.uniform(20, 40) * random.choice((-1, 1))
    values = middle + np.where(pattern(label, random), half, -half) + random.normal(0, 10, (SIDE, SIDE))
    if random.random() < 0.1:
        y, x = random.integers(0, SIDE - 2, 2)
        values[y : y + 2, x : x + 2] = 4095
    return np.clip(values, 0, 4095).astype(np.uint16)


def tile(label: int, random: np.random.Generator) -> np.ndarray:
    """Return the reflectance x 10,000 of ten bands, uint16 (side, side, 10): one of four crops, in a pattern
    of fields on bare soil, in the light of a day. Bands 1 to 3 are haze."""
    soil = np.linspace(1500, 3500, 10)
    crop = np.linspace(800, 5000, 10) * np.random.default_rng(label).uniform(0.6, 1.4, 10)
    values = np.where(pattern(int(random.integers(4)), random)[..., None], crop, soil)
    values[..., :3] = random.uniform(500, 2000, 3)
    values = values * random.uniform(0.4, 1) + random.normal(0, 150, values.shape)
    return np.clip(values, 0, 10_000).astype(np.uint16)


def scene(label: int, random: np.random.Generator, frames: int) -> Iterator[np.ndarray]:
    """Yield the frames of a scene, uint8 (side, side, 3): a pattern, over which the camera moves."""
    side = 2 * SIDE
    both = colors(label, random)
    wide = np.where(pattern_of_scene(label, random, side)[..., None], *both).astype(np.uint8)
    start, end = random.integers(0, SIDE, (2, 2))
    for moment in np.linspace(0, 1, frames):
        y, x = (start + moment * (end - start)).astype(int)
        yield wide[y : y + SIDE, x : x + SIDE]


def pattern_of_scene(label: int, random: np.random.Generator, side: int) -> np.ndarray:
    """Return a pattern twice as large as a frame, with the period of a frame's."""
    return np.tile(pattern(label, random), (2, 2))[:side, :side]


def labeled(folder: str, count: int, seed: int) -> Iterator[tuple[Path, int, np.random.Generator]]:
    """Yield a path without ending in the folder of its class, its label and its own random numbers."""
    for index in range(count):
        path = Path(folder) / CLASSES[index % 4] / f"{index:05}"
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path, index % 4, np.random.default_rng((seed, index))


def photos(count: int) -> None:
    """Write photos/train and photos/val: JPEG, in a folder for each class."""
    for seed, (part, number) in enumerate((("train", count), ("val", count // 4))):
        for path, label, random in labeled(f"photos/{part}", number, seed):
            Image.fromarray(photo(label, random)).save(path.with_suffix(".jpg"), quality=92)


def cells(count: int) -> None:
    """Write cells/train and cells/val: TIFF of 12 bits, in a folder for each class."""
    for seed, (part, number) in enumerate((("train", count), ("val", count // 4))):
        for path, label, random in labeled(f"cells/{part}", number, seed):
            Image.fromarray(cell(label, random)).save(path.with_suffix(".tif"))


def satellite(count: int) -> None:
    """Write satellite/tiles without labels, and satellite/labeled/train and val: NPY of ten bands."""
    Path("satellite/tiles").mkdir(parents=True)
    for index in range(count):
        random = np.random.default_rng((0, index))
        np.save(f"satellite/tiles/{index:05}.npy", tile(int(random.integers(4)), random))
    for seed, part in ((1, "train"), (2, "val")):
        for path, label, random in labeled(f"satellite/labeled/{part}", count // 4, seed):
            np.save(path.with_suffix(".npy"), tile(label, random))


def film(count: int) -> None:
    """Write film.mp4, of which every fifth frame is an image, and frames of other films: labeled/."""
    import av

    with av.open("film.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=25, width=SIDE, height=SIDE, pix_fmt="yuv420p")
        stream.bit_rate = 1_000_000
        random = np.random.default_rng(0)
        for _ in range(count // 4):
            for frame in scene(int(random.integers(4)), random, 20):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    for seed, part in ((1, "train"), (2, "val")):
        for path, label, random in labeled(f"labeled/{part}", count // 4, seed):
            (frame,) = scene(label, random, 1)
            Image.fromarray(frame).save(path.with_suffix(".jpg"), quality=92)


def archive(count: int) -> None:
    """Write archive/train.npz and archive/val.npz: arrays of images and labels."""
    Path("archive").mkdir()
    for seed, (part, number) in enumerate((("train", count), ("val", count // 4))):
        labels = np.arange(number) % 4
        images = [
            photo(label, np.random.default_rng((seed, index))) for index, label in enumerate(labels.tolist())
        ]
        np.savez(f"archive/{part}.npz", images=np.stack(images), labels=labels)


if __name__ == "__main__":
    KINDS = {function.__name__: function for function in (photos, cells, satellite, film, archive)}
    if sys.argv[1:2] == [] or sys.argv[1] not in KINDS:
        raise SystemExit(__doc__)
    KINDS[sys.argv[1]](int(sys.argv[2]) if len(sys.argv) > 2 else 1024)
