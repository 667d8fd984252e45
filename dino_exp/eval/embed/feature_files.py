"""Files with the names, labels and features of images, in formats that other programs read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_exp.atomic import write_atomically
from dino_exp.data.source import ImageSource
from dino_exp.eval.subject import Subject

ROWS = 8192
"""Images per row group, which takes 12 MiB at 384 dimensions."""


@dataclass(frozen=True)
class NamedFeatures:
    """Features of a source's readable images."""

    source: ImageSource
    indices: Tensor
    """(N,) int64: the source's index of each row."""
    values: Tensor
    """(N, D) float32, perhaps of a memory-mapped file."""

    def name(self, row: int) -> str:
        """Return the image's name in the source, `printable`."""
        return printable(self.source.name(int(self.indices[row])))

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Labels int64 (N,), or None if there are none."""
        return None if self.source.labels is None else self.source.labels[self.indices.numpy()]

    @cached_property
    def classes(self) -> list[str]:
        """The name of each label, `printable`; the number of a label without a name."""
        labels = self.source.labels
        count = 0 if labels is None else int(labels.max()) + 1
        return [printable(name) for name in self.source.classes or map(str, range(count))]

    def label(self, row: int) -> str | None:
        """Return the name of the image's class, or None if there are no labels."""
        return None if self.labels is None else self.classes[self.labels[row]]


def write_parquet(features: NamedFeatures, path: Path, subject: Subject) -> None:
    """Write the columns name, label (the class, if there are labels) and feature, a list of D float32.

    The schema's metadata is that of `about`. Groups of ROWS images are written one by one; only one is in
    memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    width = features.values.shape[1]
    fields = [pa.field("name", pa.string(), nullable=False)]
    if features.labels is not None:
        fields.append(pa.field("label", pa.string()))
    fields.append(pa.field("feature", pa.list_(pa.float32(), width), nullable=False))
    schema = pa.schema(fields, metadata=about(subject))

    def write(file: object) -> None:
        with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=["label"]) as writer:
            for rows, values in _groups(features.values):
                columns = [pa.array([features.name(row) for row in rows], pa.string())]
                if features.labels is not None:
                    columns.append(pa.array([features.label(row) for row in rows], pa.string()))
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width))
                writer.write_table(pa.table(columns, schema=schema))

    write_atomically(path, write)


def write_npz(features: NamedFeatures, path: Path, subject: Subject) -> None:
    """Write string arrays names and labels (the class, if there are labels), and features (N, D) float32.

    The strings of `about` are arrays too. All names are in memory at once, the features are not. `numpy.load`
    needs no pickle.
    """
    rows = range(len(features.values))
    arrays: dict[str, Any] = {"names": np.array([features.name(row) for row in rows], dtype=np.str_)}
    if features.labels is not None:
        arrays["labels"] = np.array([features.label(row) for row in rows], dtype=np.str_)
    arrays |= {key: np.array(value) for key, value in about(subject).items()}
    write_atomically(path, lambda file: np.savez(file, features=features.values.numpy(), **arrays))


def printable(name: str) -> str:
    """Return a path with bytes that are not UTF-8, which text files cannot hold, written as \\xe9."""
    return os.fsencode(name).decode(errors="backslashreplace")


def about(subject: Subject) -> dict[str, str]:
    """Return the network's name and digest, and how it sees images, as metadata of the file."""
    return {
        "weights": printable(subject.name),
        "digest": subject.digest,
        "image_size": str(subject.image_size),
        "crop_ratio": str(subject.crop_ratio),
    }


def not_finite(values: Tensor) -> Tensor:
    """Return the rows (n,) of features (N, D) with a NaN or an infinity."""
    bad = [
        rows.start + (~torch.from_numpy(part).isfinite().all(dim=1)).nonzero()[:, 0]
        for rows, part in _groups(values)
    ]
    return torch.cat(bad)


def _groups(values: Tensor) -> Iterator[tuple[range, np.ndarray]]:
    for start in range(0, len(values), ROWS):
        part = np.ascontiguousarray(values[start : start + ROWS].numpy(), dtype=np.float32)
        yield range(start, start + len(part)), part
