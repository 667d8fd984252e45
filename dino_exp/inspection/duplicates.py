"""Images that are in a set twice: the same bytes, or what looks the same."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from dino_exp.data.digests import READERS, UNREADABLE
from dino_exp.data.read_ahead import ahead
from dino_exp.data.source import CorruptImageError

SIDE = 8
"""Cells along a side of a thumbnail."""
MOST = 131_072
"""Images that are compared with one another, which takes their number squared."""
ALIKE = 0.9
"""Least similarity of near duplicates (measured in docs/data.md by benchmarks/near_duplicates.py)."""
FLAT = 0.02
"""Thumbnails with less contrast than this share of the median contrast show nothing to compare."""
PRIOR_IMAGES = 64
"""How many images the usual covariance counts for, so that a few images can be compared as well."""
REACH = 4.0
"""Cells over which the brightness of photographs is correlated: by exp(-distance / REACH)."""
FLOOR = 0.01
"""Added to the variances, as a share of the largest: details that any copy changes count less."""
BLOCK = 2048

Groups = list[list[int]]
"""Images by index, at least two in each group."""


def exact_groups(digests: np.ndarray, encoded: Callable[[int], bytes]) -> Groups:
    """Return the groups of images with equal bytes.

    Args:
        digests: uint64 (N,), of enough of each image's bytes; where they are equal, all bytes are compared.
        encoded: returns the bytes of an image. Raises CorruptImageError.
    """
    order = np.argsort(digests, kind="stable")
    same = digests[order][1:] == digests[order][:-1]
    repeated = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
    repeated = repeated[digests[repeated] != UNREADABLE]

    def hashed(index: int) -> bytes | None:
        try:
            return hashlib.blake2b(encoded(index), digest_size=16).digest()
        except CorruptImageError:
            return None

    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, content in zip(repeated.tolist(), ahead(hashed, repeated.tolist(), READERS), strict=True):
        if content is not None:
            groups[content].append(index)
    return [group for group in groups.values() if len(group) > 1]


def thumbnail(values: np.ndarray) -> np.ndarray:
    """Return the mean brightness of 8 x 8 cells of an image (H, W, C), float32 (64,)."""
    if values.dtype == np.uint8 and values.shape[2] in (1, 3):  # in half the time
        image = Image.fromarray(np.ascontiguousarray(values[:, :, 0] if values.shape[2] == 1 else values))
        image = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(image, dtype=np.float32).reshape(-1)
    height, width = (max(size, SIDE) for size in values.shape[:2])
    if values.shape[:2] != (height, width):
        values = values[np.arange(height) * values.shape[0] // height]
        values = values[:, np.arange(width) * values.shape[1] // width]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        values = np.where(np.isfinite(values), values, 0)
    cells = values
    for axis, size in enumerate((height, width)):
        edges = np.arange(SIDE + 1) * size // SIDE
        kind = np.float64 if axis == 0 else None
        cells = np.add.reduceat(cells, edges[:-1], axis=axis, dtype=kind)
        cells /= np.diff(edges).reshape([-1 if each == axis else 1 for each in range(3)])
    return cells.mean(axis=2).astype(np.float32).reshape(-1)


def near_groups(thumbnails: np.ndarray) -> Groups:
    """Return the groups of images that look alike, from their thumbnails, float32 (N, 64).

    Thumbnails are compared after whitening: in what this set's images have in common, such as a bright disc
    on black, all are alike, and only what sets one image apart from the others may say that two are the same.
    """
    contrast = thumbnails.std(axis=1)
    shown = np.flatnonzero(contrast > FLAT * np.median(contrast))
    features = whitened(thumbnails[shown])
    parent = np.arange(len(shown))

    def root(one: int) -> int:
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    for one, other in _pairs(features):
        parent[root(one)] = root(other)
    groups: dict[int, list[int]] = defaultdict(list)
    for one in np.flatnonzero(parent != np.arange(len(shown))).tolist():
        groups[root(one)].append(int(shown[one]))
    return [sorted([int(shown[first]), *others]) for first, others in groups.items()]


def _pairs(features: np.ndarray) -> Iterable[tuple[int, int]]:
    """Yield pairs of similar rows: for each image that has a similar one at least one, not all."""
    for start in range(0, len(features), BLOCK):
        rows = features[start : start + BLOCK]
        for column in range(start, len(features), BLOCK):
            alike = rows @ features[column : column + BLOCK].T > ALIKE
            if column == start:
                alike = np.triu(alike, 1)
            if not alike.any():
                continue
            for one in np.flatnonzero(alike.any(axis=1)):
                yield start + int(one), column + int(alike[one].argmax())
            for other in np.flatnonzero(alike.any(axis=0)):
                yield start + int(alike[:, other].argmax()), column + int(other)


def whitened(thumbnails: np.ndarray) -> np.ndarray:
    """Return rows of length 1, whose products are the similarities of the images of thumbnails (N, 64)."""
    count = len(thumbnails)
    rows = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    rows /= np.maximum(rows.std(axis=1, keepdims=True), 1e-6)
    rows -= rows.mean(axis=0) * count / (count + PRIOR_IMAGES)
    y, x = np.divmod(np.arange(SIDE * SIDE), SIDE)
    usual = np.exp(-np.hypot(y[:, None] - y, x[:, None] - x) / REACH)
    covariance = (rows.T @ rows + PRIOR_IMAGES * usual) / (count + PRIOR_IMAGES)
    variances, axes = np.linalg.eigh(covariance.astype(np.float64))
    scale = 1 / np.sqrt(np.maximum(variances, 0) + FLOOR * variances.max())
    features = rows @ (axes * scale).astype(np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, 1e-6)
