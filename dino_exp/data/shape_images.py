"""The drawing of the shapes: one textured object on a cluttered background, with its class and its mask.

Ten classes, each with its own silhouette and texture. Colors, position, size, rotation, light and background
are nuisance. An image depends on (seed, split, index) alone: images are drawn in blocks of 1,000, and a set
of 500 is the beginning of a set of 12,000.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Difficulty. Lengths are in pixels of a 32-pixel image and scale with data.image_size; luminance is 0 to 1.
# A network first learns what distinguishes images under every augmentation. So luminance and contrast hardly
# differ between images, hue (which the augmentation shifts) differs freely, and the background has the same
# kind of clutter everywhere. With contrasts that differ, networks learned those instead of the shapes.
AREA = (0.16, 0.3)  # share of the image that the object covers
MARGIN = 0.75  # share of the object's reach that stays inside the image
LEAST_ROAM = 4.0  # the object's center may be at least this far from the image's, however large it is
TEXTURE_PERIOD = 0.36  # of the square root of the object's area: 4.5 to 6 pixels
BACKGROUND_LUMINANCE = 0.5
OBJECT_CONTRAST = 0.36  # one of the object's colors is lighter than the background by this, the other darker
LUMINANCE_SPREAD = 0.03  # greatest difference of an image from each of these
OBJECT_CHROMA = 0.2  # distance of a color from gray, in a random hue
BACKGROUND_CHROMA = 0.15
CLUTTER_CELLS = (4, 7)  # cells per side of the noise whose level sets are the patches of the background
CLUTTER_CONTRAST = 0.14  # luminance of a patch above or below the background's; more is harder
CLUTTER_CHROMA = 0.1
CLUTTER_SHARPNESS = 6.0  # slope of a patch's edge; large is hard-edged
LIGHT = 0.15  # greatest change of brightness from the center to a side
NOISE = 0.05  # amplitude of the noise per pixel

GENERATOR_VERSION = 1
"""Part of the cache's file name, as the numbers above are. Raise it when the code draws other images."""

BLOCK = 1000
SIDE = 32.0  # reference pixels along a side
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
PI = np.float32(np.pi)

Field = np.ndarray  # float32 (n, H, W)


# --- silhouettes: signed distance, negative inside, in each silhouette's own unit ---


def _box(x: Field, y: Field, half_width: float, half_height: float) -> Field:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _radius(x: Field, y: Field) -> Field:
    return np.sqrt(x * x + y * y)


def _triangle(x: Field, y: Field) -> Field:
    return np.maximum(np.float32(np.sqrt(0.75)) * np.abs(x) + 0.5 * y, -y) - 1


def _cross(x: Field, y: Field) -> Field:
    return np.minimum(_box(x, y, 1, 0.32), _box(x, y, 0.32, 1))


def _crescent(x: Field, y: Field) -> Field:
    return np.maximum(_radius(x - 0.4, y) - 1, 0.82 - _radius(x - 0.95, y))


def _star(x: Field, y: Field) -> Field:
    c, s = np.float32(np.cos(np.pi / 5)), np.float32(np.sin(np.pi / 5))
    x = np.abs(x)  # fold the ten halves of the five points onto one
    for side in (1, -1):
        beyond = 2 * np.maximum(side * c * x - s * y, 0)
        x, y = x - side * c * beyond, y + s * beyond
    x = np.abs(x)
    inner = 0.45  # radius of the notches; the points are at 1
    edge = np.array([inner * s, inner * c - 1], dtype=np.float32)  # from point to notch
    edge /= np.hypot(*edge)
    return -edge[1] * x + edge[0] * (y - 1)


def _hourglass(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(y) - 1, (np.abs(x) - 0.8 * np.abs(y) - 0.12) * np.float32(0.78))


def _corner(x: Field, y: Field) -> Field:
    x, y = x - 0.25, y - 0.25
    return np.minimum(_box(x + 0.65, y, 0.35, 1), _box(x, y + 0.65, 1, 0.35))


# --- textures: share of the second color, 0 to 1; x and y in periods, x along the object ---


def _wave(phase: Field) -> Field:
    """Return a smoothed square wave of period 1."""
    return np.clip(0.5 + 1.2 * np.sin(2 * PI * phase), 0, 1)


def _bullseye(x: Field, y: Field, distance: Field) -> Field:
    return _wave(_radius(x, y) + 0.25)


def _checks(x: Field, y: Field, distance: Field) -> Field:
    return np.clip(0.5 + 1.6 * np.sin(PI * x) * np.sin(PI * y), 0, 1)


def _stripes(x: Field, y: Field, distance: Field) -> Field:
    return _wave(y)


def _sectors(x: Field, y: Field, distance: Field) -> Field:
    x, y = x * x - y * y, 2 * x * y  # this doubles the angle, twice: four sectors
    x, y = x * x - y * y, 2 * x * y
    return np.clip(0.5 + 1.2 * y / (_radius(x, y) + 1e-6), 0, 1)


def _outline(x: Field, y: Field, distance: Field) -> Field:
    return np.clip(0.5 + 6 * (distance + 0.32), 0, 1)


def _dots(x: Field, y: Field, distance: Field) -> Field:
    return np.clip(1.6 * (np.abs(np.sin(PI * x) * np.sin(PI * y)) - 0.35), 0, 1)


def _halves(x: Field, y: Field, distance: Field) -> Field:
    return np.clip(0.5 + 3 * y, 0, 1)


def _core(x: Field, y: Field, distance: Field) -> Field:
    return np.clip(2.2 - 2.2 * _radius(x, y), 0, 1)


def _zigzag(x: Field, y: Field, distance: Field) -> Field:
    fold = np.abs(x * 0.7 - np.floor(x * 0.7) - 0.5)
    return _wave(y + 1.6 * fold)


def _grid(x: Field, y: Field, distance: Field) -> Field:
    return np.clip(2.5 * np.maximum(np.abs(np.sin(PI * x)), np.abs(np.sin(PI * y))) - 1.7, 0, 1)


class ObjectClass(NamedTuple):
    """A silhouette with its area and reach (greatest radius) in its own unit, and its texture."""

    name: str
    distance: Callable[[Field, Field], Field]
    area: float
    reach: float
    texture: Callable[[Field, Field, Field], Field]


CLASSES = (
    ObjectClass("disc", lambda x, y: _radius(x, y) - 1, 3.142, 1.0, _bullseye),
    ObjectClass("square", lambda x, y: _box(x, y, 1, 1), 4.0, 1.41, _checks),
    ObjectClass("triangle", _triangle, 5.196, 2.0, _stripes),
    ObjectClass("ring", lambda x, y: np.abs(_radius(x, y) - 0.74) - 0.26, 2.417, 1.0, _sectors),
    ObjectClass("cross", _cross, 2.150, 1.05, _outline),
    ObjectClass("crescent", _crescent, 1.559, 1.27, _dots),
    ObjectClass("pill", lambda x, y: _radius(np.maximum(np.abs(x) - 1.5, 0), y) - 1, 9.142, 2.5, _halves),
    ObjectClass("star", _star, 1.323, 1.0, _core),
    ObjectClass("hourglass", _hourglass, 2.08, 1.36, _zigzag),
    ObjectClass("corner", _corner, 2.31, 1.46, _grid),
)


def settings() -> tuple[object, ...]:
    """Return all that an image depends on besides its seed, split, index, size and channels."""
    objects = (AREA, MARGIN, LEAST_ROAM, TEXTURE_PERIOD, OBJECT_CONTRAST, OBJECT_CHROMA)
    background = (BACKGROUND_LUMINANCE, LUMINANCE_SPREAD, BACKGROUND_CHROMA)
    clutter = (CLUTTER_CELLS, CLUTTER_CONTRAST, CLUTTER_CHROMA, CLUTTER_SHARPNESS)
    classes = ((kind.name, kind.area, kind.reach, kind.texture.__name__) for kind in CLASSES)
    return (GENERATOR_VERSION, *objects, *background, *clutter, LIGHT, NOISE, *classes)


# --- drawing ---


class _Draws:
    """One stream of random numbers, from PCG64's raw numbers: NumPy may change its distributions."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def raw(self, *shape: int) -> np.ndarray:
        return self._bits.random_raw(shape)

    def uniform(self, low: float, high: float, *shape: int) -> np.ndarray:
        unit = (self.raw(*shape) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        return np.float32(low) + np.float32(high - low) * unit

    def signed_bytes(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        return self.raw(-(-count // 8)).view(np.int8)[:count].reshape(shape)


def block_labels(seed: int, split: int, block: int) -> np.ndarray:
    """Return int64 (BLOCK,): each ten in a row have every class once, so that any beginning is balanced."""
    order = _Draws(seed, split, block, len(CLASSES)).raw(BLOCK // len(CLASSES), len(CLASSES))
    return np.argsort(order, axis=1, kind="stable").reshape(BLOCK)


def block_images(seed: int, split: int, block: int, image_size: int, channels: int) -> np.ndarray:
    """Draw uint8 (BLOCK, channels + 1, image_size, image_size); the last plane is the mask, 0 or 1."""
    labels = block_labels(seed, split, block)
    images = np.empty((BLOCK, channels + 1, image_size, image_size), dtype=np.uint8)
    for label, kind in enumerate(CLASSES):
        at = np.flatnonzero(labels == label)
        rgb, mask = _draw(kind, _Draws(seed, split, block, label), len(at), image_size)
        if channels == 1:
            rgb = np.tensordot(rgb, LUMINANCE, axes=(1, 0))[:, None]
        images[at, :-1] = (rgb * 255 + 0.5).astype(np.uint8)
        images[at, -1] = mask
    return images


def _draw(kind: ObjectClass, draws: _Draws, n: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw n images of one class: float32 (n, 3, H, W) in 0 to 1, and masks, bool (n, H, W)."""
    pixel = SIDE / image_size
    ticks = ((np.arange(image_size, dtype=np.float32) + 0.5) * pixel)[None]

    luminance = np.float32(BACKGROUND_LUMINANCE) + _spread(draws, n)
    base = luminance + _tint(draws, n, BACKGROUND_CHROMA)
    image = _background(draws, base, ticks)

    size = SIDE * np.sqrt(draws.uniform(*AREA, n, 1, 1))  # the side of a square of the object's area
    reach = size * np.float32(kind.reach / np.sqrt(kind.area))
    roam = np.maximum(SIDE / 2 - MARGIN * reach, LEAST_ROAM)
    x, y = (ticks - (SIDE / 2 + roam[:, 0] * draws.uniform(-1, 1, n, 1)) for _ in range(2))
    x, y = x[:, None, :], y[:, :, None]
    turn = draws.uniform(0, 2 * np.pi, n, 1, 1)
    c, s = np.cos(turn) / size, np.sin(turn) / size
    x, y = c * x + s * y, c * y - s * x  # now in units of `size`

    unit = np.float32(np.sqrt(kind.area))
    distance = kind.distance(unit * x, unit * y) * (size / (unit * pixel))  # in pixels
    coverage = np.clip(0.5 - distance, 0, 1)

    contrast = _either_sign(draws, n) * np.float32(OBJECT_CONTRAST)
    first = luminance + contrast + _spread(draws, n) + _tint(draws, n, OBJECT_CHROMA)
    second = luminance - contrast + _spread(draws, n) + _tint(draws, n, OBJECT_CHROMA)
    period = np.float32(TEXTURE_PERIOD)
    share = kind.texture(x / period, y / period, distance * pixel / (size * period))[:, None]
    color = first[:, :, None, None] + share * (second - first)[:, :, None, None]
    image += coverage[:, None] * (color - image)

    image *= _light(draws, n, ticks)
    image += np.float32(NOISE / 128) * draws.signed_bytes(*image.shape)
    return np.clip(image, 0, 1, out=image), coverage > 0.5


def _background(draws: _Draws, base: np.ndarray, ticks: np.ndarray) -> np.ndarray:
    """Draw patches of two sizes, lighter and darker than `base` (n, 3): float32 (n, 3, H, W)."""
    n, image_size = len(base), ticks.shape[1]
    image = np.broadcast_to(base[:, :, None, None], (n, 3, image_size, image_size)).copy()
    for cells in CLUTTER_CELLS:
        patches = np.clip(CLUTTER_SHARPNESS * _smooth_noise(draws, n, cells, image_size), -1, 1)
        contrast = np.float32(CLUTTER_CONTRAST) + _tint(draws, n, CLUTTER_CHROMA)
        image += patches[:, None] * contrast[:, :, None, None]
    return image


def _smooth_noise(draws: _Draws, n: int, cells: int, image_size: int) -> Field:
    """Return uniform noise of cells x cells per image, interpolated by a cubic B-spline."""
    position = (np.arange(image_size, dtype=np.float32) + 0.5) * (cells / image_size) + 1
    gap = np.abs(position[:, None] - np.arange(cells + 3, dtype=np.float32))
    spline = np.where(gap < 1, 2 / 3 - gap**2 + gap**3 / 2, np.maximum(2 - gap, 0) ** 3 / 6).astype(
        np.float32
    )
    grid = draws.uniform(-1, 1, n, cells + 3, cells + 3)
    return spline @ (grid @ spline.T)


def _either_sign(draws: _Draws, n: int) -> np.ndarray:
    return np.where(draws.uniform(-1, 1, n, 1) < 0, np.float32(-1), np.float32(1))


def _spread(draws: _Draws, n: int) -> np.ndarray:
    return draws.uniform(-LUMINANCE_SPREAD, LUMINANCE_SPREAD, n, 1)


def _tint(draws: _Draws, n: int, chroma: float) -> np.ndarray:
    """Return differences from gray of length `chroma` in a random hue, without luminance: float32 (n, 3)."""
    color = draws.uniform(-1, 1, n, 3)
    color -= (color @ LUMINANCE)[:, None]
    return np.float32(chroma) * color / (np.linalg.norm(color, axis=1, keepdims=True) + np.float32(1e-6))


def _light(draws: _Draws, n: int, ticks: np.ndarray) -> np.ndarray:
    slope = draws.uniform(-LIGHT, LIGHT, n, 2, 1)
    across = (ticks / (SIDE / 2) - 1)[None] * slope
    return (1 + across[:, 0][:, None, :] + across[:, 1][:, :, None])[:, None]
