"""Image retrieval on revisited Oxford and Paris (Radenovic et al. 2018) by a network's features alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dino_exp.config.evaluation_schema import RetrievalConfig
from dino_exp.data.image_scan import images_in
from dino_exp.errors import UserError
from dino_exp.eval.network_input import patch_side
from dino_exp.eval.ranking import safe_pickle
from dino_exp.eval.ranking.average_precision import best_first, scores
from dino_exp.eval.ranking.image_files import check_takes, features_of
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed
from dino_exp.paths import expanded
from dino_exp.regular_file import is_plain_name

DATASETS = ("roxford5k", "rparis6k")
LAYOUT = "root/<name>/jpg/*.jpg and root/<name>/gnd_<name>.pkl, with <name> roxford5k or rparis6k"
SCALES = (1.0, 2**-0.5, 0.5)
KS = (1, 5, 10)
LEVELS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""By level of difficulty: the labels that are positives, and the labels that are ignored."""


@dataclass(frozen=True)
class GroundTruth:
    """The content of a data set's gnd_<name>.pkl."""

    database: list[Path]
    queries: list[Path]
    boxes: list[tuple[float, ...]]
    """Each query's box: left, top, right, bottom in pixels."""
    labels: list[dict[str, np.ndarray]]
    """For each query, indices of database images by `easy`, `hard` and `junk`."""


class Retrieval:
    """Mean average precision at three levels of difficulty.

    As in the released `eval_image_retrieval.py`: images keep their shape, their longer side is reduced to
    `image_size` (Lanczos; smaller images are not enlarged), and a rest at the right and below that fills no
    patch is ignored. Queries are not cropped there; the data sets' authors crop them to their boxes.
    """

    def __init__(self, cfg: RetrievalConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError if files are missing or the network does not take images of this size."""
        for name in self._names():
            truth = ground_truth(self._root(), name)
            found = set(images_in(self._root() / name / "jpg"))
            files = truth.database + truth.queries
            missing = [path for path in files if path not in found]
            if missing:
                raise UserError(
                    f"{missing[0]}: missing ({len(missing):,} of {len(files):,} images are). The layout is "
                    f"{LAYOUT}."
                )
        smallest = self.cfg.image_size * (min(SCALES) if self.cfg.multiscale else 1)
        patch = patch_side(subject.backbone)
        if smallest < patch:
            least = math.ceil(patch / min(SCALES)) if self.cfg.multiscale else patch
            raise UserError(
                f"retrieval.image_size = {self.cfg.image_size}: smaller than a patch of {patch} pixels"
                f"{' at half the size' if self.cfg.multiscale else ''}; use at least {least}."
            )
        size = self.cfg.image_size
        shape = max(size * 3 // 4, math.ceil(patch * size / smallest)), size
        check_takes("retrieval.image_size", size, shape, self._forward(subject), subject)

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Return the figures <data set>_map_<level> and <data set>_mp10_<level>."""
        findings = Findings()
        for name in self._names():
            truth = ground_truth(self._root(), name)
            forward = self._forward(subject)
            prepare = self._prepare(None, truth.database, subject)
            database = features_of(truth.database, prepare, forward, subject)
            prepare = self._prepare(truth.boxes if self.cfg.crop_queries else None, truth.queries, subject)
            queries = features_of(truth.queries, prepare, forward, subject)
            if distributed.is_main():
                _add_figures(findings, name, truth, best_first(queries, database))
        findings.notes.append(
            "Queries were cropped to their boxes, as the data sets' authors do; the released code does not."
            if self.cfg.crop_queries
            else "Queries were not cropped, as in the released code; the data sets' authors crop to boxes."
        )
        return findings

    def _root(self) -> Path:
        if self.cfg.root is None:
            raise UserError(
                f"retrieval.root = null: give the folder of the data sets. The layout is {LAYOUT}."
            )
        return expanded(self.cfg.root)

    def _names(self) -> list[str]:
        unknown = [name for name in self.cfg.datasets if name not in DATASETS]
        if unknown or not self.cfg.datasets:
            raise UserError(
                f"retrieval.datasets = {self.cfg.datasets}: give one or both of {', '.join(DATASETS)}."
            )
        return self.cfg.datasets

    def _prepare(
        self, boxes: Sequence[tuple[float, ...]] | None, files: Sequence[Path], subject: Subject
    ) -> Callable[[int, Image.Image], Image.Image]:
        """Return the function that makes of an index and its image what the network sees."""
        least = patch_side(subject.backbone) / (min(SCALES) if self.cfg.multiscale else 1)

        def prepare(index: int, image: Image.Image) -> Image.Image:
            if boxes is not None:
                image = image.crop(boxes[index])  # type: ignore[arg-type]  # Pillow rounds floats
            image.thumbnail((self.cfg.image_size, self.cfg.image_size), Image.Resampling.LANCZOS)
            if min(image.size) < least:
                raise UserError(
                    f"{files[index]}: {image.width}x{image.height} pixels at retrieval.image_size = "
                    f"{self.cfg.image_size}, narrower than a patch; choose a larger size."
                )
            return image

        return prepare

    def _forward(self, subject: Subject) -> Callable[[Tensor], Tensor]:
        """Return the function from images uint8 (B, C, H, W) to features (B, D), means over the scales."""
        patch = patch_side(subject.backbone)

        def forward(images: Tensor) -> Tensor:
            normalized = subject.normalized(images)
            total = subject.backbone(_whole_patches(normalized, patch)).float()
            for scale in SCALES[1:] if self.cfg.multiscale else ():
                smaller = F.interpolate(normalized, scale_factor=scale, mode="bilinear", align_corners=False)
                total = total + subject.backbone(_whole_patches(smaller, patch)).float()
            return total / (len(SCALES) if self.cfg.multiscale else 1)

        return forward


def ground_truth(root: Path, name: str) -> GroundTruth:
    """Return the lists of root/<name>/gnd_<name>.pkl. Raises UserError if it is missing or another format."""
    file = root / name / f"gnd_{name}.pkl"
    if not file.is_file():
        raise UserError(f"{file}: missing. retrieval.root = {root} must have the layout {LAYOUT}.")
    found = safe_pickle.load(file)
    try:
        database, queries = ([_name(each) for each in found[key]] for key in ("imlist", "qimlist"))
        entries = list(found["gnd"])
        boxes = [tuple(float(side) for side in entry["bbx"]) for entry in entries]
        labels = [
            {key: _rows(entry[key], len(database)) for key in ("easy", "hard", "junk")} for entry in entries
        ]
        if len(entries) != len(queries) or not queries or any(len(box) != 4 for box in boxes):
            raise ValueError(f"{len(queries)} queries and {len(entries)} entries")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file}: not the published list ({type(error).__name__}: {error}). That has imlist, qimlist and "
            "gnd, and gnd has bbx, easy, hard and junk for each query."
        ) from error
    folder = root / name / "jpg"
    stored = {path.stem: path for path in images_in(folder)}  # as .jpg, .JPG, or converted
    of_database, of_queries = (
        [stored.get(each, folder / f"{each}.jpg") for each in names] for names in (database, queries)
    )
    return GroundTruth(of_database, of_queries, boxes, labels)


def _name(value: Any) -> str:
    """Return the name of an image, which leads to no other folder."""
    if not isinstance(value, str):
        raise TypeError("an image's name is not text")
    if not is_plain_name(value):
        raise ValueError(f"{value[:80]!r} is not the name of an image")
    return value


def _rows(values: Any, length: int) -> np.ndarray:
    """Return indices of database images as int64; an empty list may have any type."""
    if not isinstance(values, np.ndarray) and not all(isinstance(each, int | np.integer) for each in values):
        # refused here, because NumPy would walk through any depth of lists
        raise ValueError(f"expected indices from 0 to {length - 1}, found something else")
    rows = np.asarray(values).reshape(-1)
    if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= length):
        raise ValueError(f"expected indices from 0 to {length - 1}, found {rows.tolist()}"[:200])
    return rows.astype(np.int64)


def _add_figures(findings: Findings, name: str, truth: GroundTruth, orders: np.ndarray) -> None:
    details: dict[str, Any] = {"images": len(truth.database), "queries": len(truth.queries)}
    for level, (good, ignored) in LEVELS.items():
        positives, junk = (
            [np.concatenate([labels[key] for key in keys]) for labels in truth.labels]
            for keys in (good, ignored)
        )
        found = scores(orders, positives, junk, KS)
        details[f"queries_{level}"] = found.queries
        if not found.queries:
            findings.notes.append(f"{name}: no query has positives at the level {level}.")
            continue
        findings.figures[f"{name}_map_{level}"] = 100 * found.mean_average_precision
        findings.figures[f"{name}_mp10_{level}"] = 100 * found.precision_at[10]
        details |= {f"mp{k}_{level}": 100 * found.precision_at[k] for k in KS}
    findings.details[name] = details


def _whole_patches(images: Tensor, patch: int) -> Tensor:
    """Crop images at the right and below to entire patches, as a convolution of that stride sees them."""
    height, width = (side // patch * patch for side in images.shape[-2:])
    return images[..., :height, :width]
