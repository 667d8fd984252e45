"""The evaluation `embed`: features of any images in a file, their nearest neighbors, and a map."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from dino_exp.config.data_schema import ImageFolderConfig
from dino_exp.config.evaluation_schema import EmbedConfig
from dino_exp.data.source import ImageSource
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.eval.embed.feature_files import NamedFeatures, not_finite, printable, write_npz, write_parquet
from dino_exp.eval.embed.neighbor_sheet import LabeledImage, neighbors_figure
from dino_exp.eval.embed.neighborhoods import (
    AGREEMENT,
    FEWEST,
    Neighbors,
    agreement,
    map_coordinates,
    nearest_others,
)
from dino_exp.eval.extraction import Extracted
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed
from dino_exp.plots.png import save

PAGE = {"altair": "'dino-exp[report]'", "vl_convert": "'dino-exp[report]'", "jinja2": "'dino-exp[report]'"}
NEEDED = {
    "tsne": {**PAGE, "sklearn": "'dino-exp[eval]'"},
    "umap": {**PAGE, "umap": "umap-learn"},
    "none": {},
}
"""By `map`: the libraries that it needs, and how to install each."""
SHEET_ROWS, SHEET_NEIGHBORS, SHEET_SIDE = 8, 8, 160
UNREADABLE_NAMED = 20
EQUAL = 1e-6
"""Difference below which normalized features count as equal."""


class Embed:
    """Features in a file, a sheet of nearest neighbors, and a page with a map."""

    def __init__(self, cfg: EmbedConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError if a library or the images are missing."""
        for library, package in NEEDED[self.cfg.map].items():
            if find_spec(library) is None:
                raise UserError(
                    f"embed.map = {self.cfg.map}: {library} is missing; pip install {package}, or use "
                    "embed.map=none."
                )
        self._images(subject, data)

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Write the files, and return the figures same_class_k<k> if there are labels."""
        data, split, source = self._images(subject, data)
        features = data.features(split)
        found = NamedFeatures(source, features.indices, features.final)
        with distributed.agreed():
            if distributed.is_main():
                _refuse_not_finite(found)
        if not distributed.is_main():
            return Findings()
        suffix, write = {"parquet": ("parquet", write_parquet), "npz": ("npz", write_npz)}[self.cfg.format]
        file = folder / f"features.{suffix}"
        write(found, file, subject)
        findings = Findings(files=[file], details=_counts(found))
        unreadable = findings.details["unreadable"]
        if unreadable:
            findings.notes.append(
                f"{unreadable:,} of {len(source):,} images could not be read and were skipped."
            )
        if len(found.values) == 1:
            findings.notes.append("A single image has no neighbors, so no sheet and no map were made.")
            return findings
        rows = torch.tensor(evenly_spread(len(found.values), self.cfg.map_size))
        neighbors = nearest_others(found.values, rows, max(*AGREEMENT, SHEET_NEIGHBORS), subject.device)
        findings.details["images_compared"] = len(rows)
        if found.labels is not None:
            labels = torch.from_numpy(found.labels)
            findings.figures, by_chance = agreement(labels, neighbors)
            findings.details["same_class_by_chance"] = by_chance
        findings.files.append(_write_sheet(found, neighbors, subject, folder))
        if self.cfg.map != "none":
            _write_map(found, neighbors, self.cfg.map, subject, folder, findings)
        return findings

    def _images(self, subject: Subject, data: LabeledData) -> tuple[LabeledData, str, ImageSource]:
        """Return a data set, the split whose features are computed, and its images."""
        if self.cfg.source is not None:
            data = _source_data(self.cfg.source, subject)
            try:
                return data, "train", data.splits.train
            except UserError as error:
                raise UserError(str(error).replace("data.root", "embed.source")) from error
        splits = data.splits
        return (data, "train", splits.train) if splits.test is None else (data, "test", splits.test)


@lru_cache(maxsize=1)
def _source_data(root: str, subject: Subject) -> Extracted:
    """Return the images of a folder or a list; cached, because `check` and `evaluate` both need them."""
    how = subject.decoding
    bands = None if how.bands is None else list(how.bands)
    pairs = None if how.range is None else [list(pair) for pair in how.range]
    cfg = ImageFolderConfig(
        root=root, val_root=None, channels=how.channels, bands=bands, range=pairs, max_corrupt=1.0
    )
    node = OmegaConf.structured(cfg)
    return Extracted(subject, node, progress=sys.stdout.isatty(), title="embed.source")


def _refuse_not_finite(found: NamedFeatures) -> None:
    bad = not_finite(found.values)
    if len(bad):
        raise UserError(
            f"{len(bad):,} of {len(found.values):,} features are not finite, the first that of "
            f"{found.name(int(bad[0]))}. Try precision=fp32; if it persists, the network has diverged."
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


def _crops(found: NamedFeatures, rows: Sequence[int], side: int, subject: Subject) -> dict[int, Tensor]:
    """Return by row the square that the network saw, uint8 (C, S, S), S ≤ `side`; skip unreadable images."""
    indices = [int(found.indices[row]) for row in rows]
    row_of = dict(zip(indices, rows, strict=True))
    side = min(side, subject.image_size)
    return {
        row_of[index]: image.clone()
        for batch, readable in subject.still_images(found.source, indices, side, batch_size=64)
        for image, index in zip(batch, readable, strict=True)
    }


def _write_sheet(found: NamedFeatures, neighbors: Neighbors, subject: Subject, folder: Path) -> Path:
    chosen = evenly_spread(len(neighbors.rows), SHEET_ROWS)
    near = neighbors.nearest[chosen, :SHEET_NEIGHBORS]
    lines = torch.cat([neighbors.rows[chosen, None], near], dim=1).tolist()
    pixels = _crops(found, sorted({row for line in lines for row in line}), SHEET_SIDE, subject)
    sheet = [
        [
            LabeledImage(pixels.get(row), found.label(row), cosine)
            for row, cosine in zip(line, [None, *cosines], strict=False)
        ]
        for line, cosines in zip(lines, neighbors.cosines[chosen].tolist(), strict=True)
    ]
    caption = f"Nearest neighbors among {len(found.values):,} images. Features: {subject.name}"
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
    """Write the page with the map, or add a note why there is none."""
    from dino_exp.eval.embed import feature_map

    rows = neighbors.rows.tolist()
    features = F.normalize(found.values[neighbors.rows], dim=1)
    if len(rows) < FEWEST:
        findings.notes.append(f"A map needs at least {FEWEST} images, but there are {len(rows)}.")
        return
    if (features - features[0]).abs().max() < EQUAL:
        findings.notes.append("All images have the same feature, so no map was made.")
        return
    coordinates, words = map_coordinates(features.numpy(), method, subject.seed)
    findings.details["map"] = words
    if len(rows) < len(found.values):
        findings.notes.append(
            f"The map shows {len(rows):,} of {len(found.values):,} images, evenly distributed."
        )
    with_thumbnail = [rows[index] for index in evenly_spread(len(rows), feature_map.MOST_THUMBNAILS)]
    crops = _crops(found, with_thumbnail, feature_map.THUMBNAIL, subject)
    urls = dict(zip(crops, feature_map.thumbnails(list(crops.values())), strict=True))
    nearest_rows, cosines = neighbors.nearest[:, 0].tolist(), neighbors.cosines[:, 0].tolist()
    points = [
        feature_map.MapPoint(
            found.name(row), found.label(row), found.name(near), found.label(near), cosine, urls.get(row, "")
        )
        for row, near, cosine in zip(rows, nearest_rows, cosines, strict=True)
    ]
    title, facts = f"Features: {subject.name}", _facts(found, subject, findings)
    page = feature_map.FeatureMap(title, words, coordinates, points, facts, findings.notes)
    feature_map.write_map(page, folder / "map.html")
    findings.files.append(folder / "map.html")


def _facts(found: NamedFeatures, subject: Subject, findings: Findings) -> list[tuple[str, str]]:
    unreadable = findings.details["unreadable"]
    facts = [
        ("Images", f"{len(found.values):,}" + (f", and {unreadable:,} unreadable" if unreadable else "")),
        ("Feature dimensions", str(found.values.shape[1])),
        ("Image size", f"{subject.image_size} px"),
    ]
    for name, share in findings.figures.items():
        k = int(name.removeprefix("same_class_k"))
        which = "nearest image" if k == 1 else f"{k} nearest images"
        facts.append((f"Same class, {which}", f"{share:.1f} %"))
    if findings.figures:
        facts.append(("Same class, by chance", f"{findings.details['same_class_by_chance']:.1f} %"))
    return facts
