"""Paths and labels of up to ten million stored images, as characters and numbers in tensors.

A Python object per image would take gigabytes in each process; tensors go to the loader's processes
through shared memory.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from dino_exp.data.decoding import Decoding
from dino_exp.data.source import ImageSource
from dino_exp.errors import UserError

log = logging.getLogger(__name__)


class NameTable:
    """Many names in one buffer: name i is characters[ends[i] : ends[i + 1]]."""

    def __init__(self, characters: bytes | bytearray | np.ndarray, ends: array[int] | np.ndarray) -> None:
        self.characters = _tensor(characters, np.uint8)
        self.ends = _tensor(ends, np.int64)

    @classmethod
    def of(cls, names: Sequence[bytes]) -> NameTable:
        """Return a table of these names."""
        return cls(b"".join(names), np.cumsum([0, *map(len, names)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return os.fsdecode(self.characters[self.ends[index] : self.ends[index + 1]].numpy().tobytes())

    def encoded(self, part: range) -> list[bytes]:
        """Return the names of consecutive images as bytes, which is quick."""
        ends = self.ends[part.start : part.stop + 1].tolist()
        characters = self.characters[ends[0] : ends[-1]].numpy().tobytes()
        return [characters[start - ends[0] : end - ends[0]] for start, end in itertools.pairwise(ends)]


class StoredImages(ImageSource, Protocol):
    """Images in files."""

    path: Path
    """The folder or list that data.root or data.val_root names."""
    decoding: Decoding
    """How a file becomes bytes."""

    def use_classes_of(
        self,
        train: StoredImages,
        where: str,
        of: str = "data.root",
        otherwise: str = "set data.val_root=null",
    ) -> None: ...

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image as stored. Raises CorruptImageError."""
        ...

    def digest(self, index: int, whole: int) -> int:
        """Return the digest of an image, as in `digests`. Raises OSError."""
        ...


class LabeledSource:
    """The part of `StoredImages` that does not depend on how they are stored."""

    has_masks = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: list[str] | None = None
        self._labels: torch.Tensor | None = None
        self._partly = ""  # in words, which images of a labeled set have no label

    @property
    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.numpy()

    def name(self, index: int) -> str:
        """Return the name of an image, for messages."""
        raise NotImplementedError

    def mask(self, index: int) -> torch.Tensor:
        raise ValueError("stored images have no masks")

    def label(self, labels: array[int] | np.ndarray, classes: list[str]) -> None:
        """Set int64 labels (N,) and their classes.

        A negative label is none. As images have labels all or none, one image without drops the others'.
        A single class counts as no labels, because k-NN on one class would always be right.

        Raises UserError if there is no class for a label.
        """
        tensor = _tensor(labels, np.int64)
        if tensor.is_floating_point():  # which may hold NaN
            raise TypeError("labels are integers")
        tensor = tensor.to(torch.int64)
        without = torch.nonzero(tensor < 0).flatten()
        if len(without):
            if len(without) < len(tensor):
                self._partly = (
                    f"{len(without):,} of {len(tensor):,} images have no label ({self.name(int(without[0]))})"
                )
                log.warning("%s, so the labels of the others are not used.", self._partly)
            return
        if len(tensor) and tensor.max() >= len(classes):
            first = int((tensor >= len(classes)).nonzero()[0])
            raise UserError(
                f"{self.name(first)}: label {tensor[first]}, but there are only {len(classes):,} classes."
            )
        if len(classes) > 1:
            self.classes, self._labels = classes, tensor

    def relabel(self, classes: list[str] | None, number: Sequence[int]) -> None:
        """Change label i to number[i], a label of `classes`, or drop all labels (classes = None)."""
        labels, self.classes, self._labels = self._labels, None, None
        if classes is not None and labels is not None:
            self.label(torch.tensor(number, dtype=torch.int64)[labels].numpy(), classes)

    def use_classes_of(
        self,
        train: StoredImages,
        where: str,
        of: str = "data.root",
        otherwise: str = "set data.val_root=null",
    ) -> None:
        """Number the labels of these held-out images as those of the training images.

        Args:
            where: the key of these images and its value, for errors.
            of: the key of the training images.
            otherwise: what to do instead of making the classes agree.

        Raises UserError if classes are missing or unknown.
        """
        if train.classes is None:
            self.relabel(None, [])
            return
        if self.classes is None or self.labels is None:
            what = self._partly or "these images have fewer than two classes"
            raise UserError(
                f"{where} ({self.path}): {what}, and those of {of} ({train.path}) have "
                f"{len(train.classes):,} classes. Label them with the same classes, or {otherwise}."
            )
        position = {name: number for number, name in enumerate(train.classes)}
        present = {self.classes[label] for label in np.unique(self.labels)}
        unknown = sorted(present - position.keys())
        if unknown:
            raise UserError(
                f"{where} ({self.path}): class {unknown[0]!r} ({len(unknown):,} such) is not among the "
                f"{len(train.classes):,} classes of {of} ({train.path}). Make the class names agree, "
                f"or {otherwise}."
            )
        self.relabel(train.classes, [position.get(name, -1) for name in self.classes])


def short_digest(*parts: object) -> str:
    """Return 16 hexadecimal digits of a hash of bytes, arrays, and objects by their repr, to name a file."""
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = part.data
        hashed.update(part if isinstance(part, (bytes, memoryview)) else repr(part).encode())
        hashed.update(b"\0")
    return hashed.hexdigest()[:16]


def _tensor(values: bytes | bytearray | array[int] | np.ndarray, kind: type) -> torch.Tensor:
    if not isinstance(values, np.ndarray):
        if not len(values):  # np.frombuffer wants a byte
            return torch.from_numpy(np.empty(0, dtype=kind))
        values = np.frombuffer(bytearray(values) if isinstance(values, bytes) else values, dtype=kind)
    return torch.from_numpy(values)
