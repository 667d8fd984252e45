"""What images a data set holds, wherever they lie and in whatever files: the content of a run's data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dino_exp.data.labeled import NameTable
from dino_exp.data.source import Splits


@dataclass(frozen=True)
class Content:
    """The images of one set, in their order.

    names: the images' names relative to their root, to say what has changed; no part of `key`.
    digests: uint64 (N,), of each image's size and enough of its bytes.
    labels: int64 (N,), or None for images without labels.
    """

    names: NameTable
    digests: np.ndarray
    labels: np.ndarray | None

    @property
    def key(self) -> str:
        """16 hexadecimal digits that change with any image, label, or their order."""
        hashed = hashlib.sha256(self.digests.tobytes())
        hashed.update(b"" if self.labels is None else self.labels.astype(np.int64).tobytes())
        return hashed.hexdigest()[:16]


def contents_of(splits: Splits) -> dict[str, Content]:
    """Return the content of each part of a set that is stored in files: train, and test if there is one.

    A generated set, which its configuration describes completely, has none: {}.
    """
    parts = {"train": splits.train, "test": splits.test}
    return {name: part.content() for name, part in parts.items() if hasattr(part, "content")}


def key_of(contents: Mapping[str, Content]) -> str | None:
    """Return one key of all parts, for a configuration; None for a generated set."""
    if not contents:
        return None
    keys = [f"{name}:{contents[name].key}" for name in sorted(contents)]
    return hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]


def write(path: Path, contents: Mapping[str, Content]) -> None:
    """Write the contents to a file, atomically."""
    raise NotImplementedError


def read(path: Path) -> dict[str, Content]:
    """Return the contents from a file of `write`, {} where it is missing; raises UserError if damaged."""
    raise NotImplementedError


def differences(before: Mapping[str, Content], now: Mapping[str, Content]) -> str:
    """Return in words which images differ: '2 added (cat/p041.jpg, ...), 1 changed (dog/p3.jpg)'; '' for none."""
    raise NotImplementedError
