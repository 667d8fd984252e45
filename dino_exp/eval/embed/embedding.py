"""Features of any images in a file, and a look at what lies beside what."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_exp.config.schema import ImageFolderConfig
from dino_exp.data.source import ImageSource
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.eval.embed.feature_files import NamedFeatures, not_finite, printable, write_npz, write_parquet
from dino_exp.eval.embed.neighbor_sheet import SheetImage, neighbors_figure
from dino_exp.eval.embed.neighborhoods import (
    AGREEMENT,
    FEWEST,
    Neighbors,
    agreement,
    layout,
    nearest_others,
)
from dino_exp.eval.extraction import Extracted
from dino_exp.eval.features import still_images
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed
from dino_exp.plots.png import save

PAGE = {"altair": "'dino-exp[report]'", "vl_convert": "'dino-exp[report]'", "jinja2": "'dino-exp[report]'"}
NEEDED = {
    "tsne": {**PAGE, "sklearn": "'dino-exp[eval]'"},
    "umap": {**PAGE, "umap": "umap-learn"},
    "none": {},
}
"""By `map`: what it imports, and what to install for that."""
SHEET_ROWS, SHEET_NEIGHBORS, SHEET_SIDE = 8, 8, 160
UNREADABLE_NAMED = 20
ALIKE = 1e-6
"""Difference of normalized features below which they are the same."""


@dataclass(frozen=True, kw_only=True)
class Embed:
    """The `embed` evaluation; fields as in `EmbedConfig`."""

    source: str | None
    format: str
    map: str
    map_size: int

    def check(self, subject: Subject, data: LabeledData) -> None:
        for library, package in NEEDED[self.map].items():
            if find_spec(library) is None:
                raise UserError(
                    f"embed.map = {self.map}: {library} is missing; pip install {package}, or embed.map=none."
                )
        self._images(subject, data)

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        data, split, source = self._images(subject, data)
        features = data.features(split)
        found = NamedFeatures(source, features.indices, features.final)
        with distributed.agreed():
            if distributed.is_main():
                _refuse_not_finite(found)
        if not distributed.is_main():
            return Findings()
        suffix, write = {"parquet": ("parquet", write_parquet), "npz": ("npz", write_npz)}[self.format]
        file = folder / f"features.{suffix}"
        write(found, file, subject)
        findings = Findings(files=[file], details=_counts(found))
        unreadable = findings.details["unreadable"]
        if unreadable:
            findings.notes.append(
                f"{unreadable:,} of {len(source):,} images could not be read and are left out."
            )
        if len(found.values) == 1:
            findings.notes.append("A single image has no neighbors, so there is neither sheet nor map.")
            return findings
        rows = torch.tensor(evenly_spread(len(found.values), self.map_size))
        neighbors = nearest_others(found.values, rows, max(*AGREEMENT, SHEET_NEIGHBORS), subject.device)
        findings.details["images_compared"] = len(rows)
        if found.labels is not None:
            labels = torch.from_numpy(found.labels)
            findings.figures, by_chance = agreement(labels, neighbors)
            findings.details["same_class_by_chance"] = by_chance
        findings.files.append(_write_sheet(found, neighbors, subject, folder))
        if self.map != "none":
            _write_map(found, neighbors, self.map, subject, folder, findings)
        return findings

    def _images(self, subject: Subject, data: LabeledData) -> tuple[LabeledData, str, ImageSource]:
        """Whose features are wanted: a split of a data set."""
        if self.source is not None:
            data = _given(self.source, subject)
            try:
                return data, "train", data.splits.train
            except UserError as error:
                raise UserError(str(error).replace("data.root", "embed.source")) from error
        splits = data.splits
        return (data, "train", splits.train) if splits.test is None else (data, "test", splits.test)


@lru_cache(maxsize=1)
def _given(place: str, subject: Subject) -> Extracted:
    """The images of a folder or a list, looked up once, though `check` and `evaluate` both ask."""
    node: dict[str, Any] = {
        "_target_": ImageFolderConfig._target_,
        "root": place,
        "val_root": None,
        "channels": subject.channels,
        "max_corrupt": 1.0,
        "backend": "fast",
        "packed": False,
        "packed_side": None,
    }
    return Extracted(subject, node, progress=sys.stdout.isatty(), title="embed.source")


def _refuse_not_finite(found: NamedFeatures) -> None:
    bad = not_finite(found.values)
    if len(bad):
        raise UserError(
            f"{len(bad):,} of {len(found.values):,} features are not finite, the first that of "
            f"{found.name(int(bad[0]))}. The network has diverged, or try precision=fp32."
        )


def _counts(found: NamedFeatures) -> dict[str, Any]:
    readable, width = found.values.shape
    details: dict[str, Any] = {"images": readable, "dimensions": width}
    details["unreadable"] = len(found.source) - readable
    if details["unreadable"]:
        is_read = np.zeros(len(found.source), dtype=bool)
        is_read[found.indices.numpy()] = True
        missing = np.flatnonzero(~is_read)[:UNREADABLE_NAMED]
        details["unreadable_names"] = [printable(found.source.name(int(index))) for index in missing]
    return details


# ---- images ----------------------------------------------------------------------------------------------


def _seen(found: NamedFeatures, rows: Sequence[int], side: int, subject: Subject) -> dict[int, Tensor]:
    """By row, the square that the network saw, uint8 (C, S, S), S at most `side`; without unreadable ones."""
    indices = [int(found.indices[row]) for row in rows]
    row_of = dict(zip(indices, rows, strict=True))
    return {
        row_of[index]: image.clone()
        for batch, readable in still_images(
            found.source,
            indices,
            image_size=min(side, subject.image_size),
            crop_ratio=subject.crop_ratio,
            batch_size=64,
            workers=subject.workers,
        )
        for image, index in zip(batch, readable, strict=True)
    }


def _write_sheet(found: NamedFeatures, neighbors: Neighbors, subject: Subject, folder: Path) -> Path:
    chosen = evenly_spread(len(neighbors.rows), SHEET_ROWS)
    near = neighbors.where[chosen, :SHEET_NEIGHBORS]
    lines = torch.cat([neighbors.rows[chosen, None], near], dim=1).tolist()
    pixels = _seen(found, sorted({row for line in lines for row in line}), SHEET_SIDE, subject)
    sheet = [
        [
            SheetImage(pixels.get(row), found.label(row), cosine)
            for row, cosine in zip(line, [None, *cosines], strict=False)
        ]
        for line, cosines in zip(lines, neighbors.cosines[chosen].tolist(), strict=True)
    ]
    caption = f"Nearest of {len(found.values):,} images. Features: {subject.name}"
    save(neighbors_figure(sheet, caption), folder / "neighbors.png")
    return folder / "neighbors.png"


def _write_map(
    found: NamedFeatures,
    neighbors: Neighbors,
    method: str,
    subject: Subject,
    folder: Path,
    findings: Findings,
) -> None:
    """Write the page, or say in a note why there is none."""
    from dino_exp.eval.embed.feature_map import (
        MOST_THUMBNAILS,
        THUMBNAIL,
        FeatureMap,
        MappedImage,
        thumbnails,
        write_map,
    )

    rows = neighbors.rows.tolist()
    features = F.normalize(found.values[neighbors.rows], dim=1)
    if len(rows) < FEWEST:
        findings.notes.append(f"A map needs {FEWEST} images, and there are {len(rows)}.")
        return
    if (features - features[0]).abs().max() < ALIKE:
        findings.notes.append("All images have the same feature, so there is no map of them.")
        return
    places, words = layout(features.numpy(), method, subject.seed)
    findings.details["map"] = words
    if len(rows) < len(found.values):
        findings.notes.append(f"The map has {len(rows):,} of {len(found.values):,} images, evenly spread.")
    shown = _seen(
        found, [rows[index] for index in evenly_spread(len(rows), MOST_THUMBNAILS)], THUMBNAIL, subject
    )
    urls = dict(zip(shown, thumbnails(list(shown.values())), strict=True))
    nearest_rows, cosines = neighbors.where[:, 0].tolist(), neighbors.cosines[:, 0].tolist()
    images = [
        MappedImage(
            found.name(row), found.label(row), found.name(near), found.label(near), cosine, urls.get(row, "")
        )
        for row, near, cosine in zip(rows, nearest_rows, cosines, strict=True)
    ]
    page = FeatureMap(
        f"Features: {subject.name}",
        words,
        places,
        images,
        _facts(found, subject, findings),
        findings.notes,
    )
    write_map(page, folder / "map.html")
    findings.files.append(folder / "map.html")


def _facts(found: NamedFeatures, subject: Subject, findings: Findings) -> list[tuple[str, str]]:
    unreadable = findings.details["unreadable"]
    facts = [
        ("Images", f"{len(found.values):,}" + (f", and {unreadable:,} unreadable" if unreadable else "")),
        ("Dimensions of a feature", str(found.values.shape[1])),
        ("Side of the images", f"{subject.image_size} px"),
    ]
    for name, share in findings.figures.items():
        k = int(name.removeprefix("same_class_k"))
        which = "nearest image" if k == 1 else f"{k} nearest images"
        facts.append((f"Same class, {which}", f"{share:.1f} %"))
    if findings.figures:
        facts.append(("Same class, by chance", f"{findings.details['same_class_by_chance']:.1f} %"))
    return facts
