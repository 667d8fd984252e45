"""Image retrieval on revisited Oxford and Paris (Radenovic et al. 2018) with a network's features alone."""

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

from dino_exp.errors import UserError
from dino_exp.eval.ranking import safe_pickle
from dino_exp.eval.ranking.average_precision import best_first, scores
from dino_exp.eval.ranking.image_files import check_takes, features_of, patch_side
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed

DATASETS = ("roxford5k", "rparis6k")
LAYOUT = "root/<name>/jpg/*.jpg and root/<name>/gnd_<name>.pkl, with <name> roxford5k or rparis6k"
SCALES = (1.0, 2**-0.5, 0.5)
KS = (1, 5, 10)
LEVELS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Which labels are positives at each level of difficulty, and which are passed over."""


@dataclass(frozen=True)
class GroundTruth:
    """A data set as its gnd_<name>.pkl lists it."""

    database: list[Path]
    queries: list[Path]
    boxes: list[tuple[float, ...]]
    """Left, top, right, bottom of what each query asks for, in pixels."""
    labels: list[dict[str, np.ndarray]]
    """Of each query, numbers of database images by `easy`, `hard` and `junk`."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Mean average precision at three levels of difficulty; fields as in `RetrievalConfig`.

    As in the released `eval_image_retrieval.py`: images keep their shape, their longer side is reduced to
    `image_size` (Lanczos; smaller ones are not enlarged), and a transformer's patches leave out what remains
    at the right and below. Queries are seen whole there; the data sets' authors cut them to their boxes.
    """

    root: str | None
    datasets: list[str]
    image_size: int
    multiscale: bool
    crop_queries: bool = False

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError where files are missing or the network does not take images of this size."""
        for name in self._names():
            truth = ground_truth(self._root(), name)
            folder = self._root() / name / "jpg"
            there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
            missing = [path for path in truth.database + truth.queries if path.name not in there]
            if missing:
                raise UserError(
                    f"{missing[0]}: there is no such file; {len(missing):,} of the "
                    f"{len(truth.database) + len(truth.queries):,} images are missing. "
                    f"The layout is {LAYOUT}."
                )
        smallest = self.image_size * (min(SCALES) if self.multiscale else 1)
        patch = patch_side(subject.backbone)
        if smallest < patch:
            least = math.ceil(patch / min(SCALES)) if self.multiscale else patch
            raise UserError(
                f"retrieval.image_size = {self.image_size}: smaller than a patch of {patch} pixels"
                f"{' at half the size' if self.multiscale else ''}; at least {least}."
            )
        shape = (
            max(self.image_size * 3 // 4, math.ceil(patch * self.image_size / smallest)),
            self.image_size,
        )
        check_takes("retrieval.image_size", self.image_size, [shape], self._forward(subject), subject)

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Figures <data set>_map_<level> and <data set>_mp10_<level>."""
        findings = Findings()
        for name in self._names():
            truth = ground_truth(self._root(), name)
            forward = self._forward(subject)
            database = features_of(
                truth.database, self._show(None, truth.database, subject), forward, subject
            )
            boxes = truth.boxes if self.crop_queries else None
            queries = features_of(truth.queries, self._show(boxes, truth.queries, subject), forward, subject)
            if distributed.is_main():
                _add_figures(findings, name, truth, best_first(queries, database))
        findings.notes.append(
            "Queries were cut to their boxes, as the data sets' authors do; the released code does not."
            if self.crop_queries
            else "Queries were seen whole, as in the released code; the data sets' authors cut them to boxes."
        )
        return findings

    def _root(self) -> Path:
        if self.root is None:
            raise UserError(
                f"retrieval.root is null: give the folder of the data sets; the layout is {LAYOUT}."
            )
        return Path(self.root).expanduser()

    def _names(self) -> list[str]:
        unknown = [name for name in self.datasets if name not in DATASETS]
        if unknown or not self.datasets:
            raise UserError(
                f"retrieval.datasets = {self.datasets}: give one or both of {', '.join(DATASETS)}."
            )
        return self.datasets

    def _show(
        self, boxes: Sequence[tuple[float, ...]] | None, files: Sequence[Path], subject: Subject
    ) -> Callable[[int, Image.Image], Image.Image]:
        """Image by number as the network sees it."""
        least = patch_side(subject.backbone) / (min(SCALES) if self.multiscale else 1)

        def show(number: int, image: Image.Image) -> Image.Image:
            if boxes is not None:
                image = image.crop(boxes[number])  # type: ignore[arg-type]  # Pillow rounds floats
            image.thumbnail((self.image_size, self.image_size), Image.Resampling.LANCZOS)
            if min(image.size) < least:
                raise UserError(
                    f"{files[number]}: {image.width}x{image.height} pixels at retrieval.image_size = "
                    f"{self.image_size}, narrower than a patch; choose a larger size."
                )
            return image

        return show

    def _forward(self, subject: Subject) -> Callable[[Tensor], Tensor]:
        """uint8 (B, C, H, W) -> (B, D), the mean over the scales."""
        patch = patch_side(subject.backbone)

        def forward(images: Tensor) -> Tensor:
            normalized = subject.normalized(images)
            total = subject.backbone(_whole_patches(normalized, patch)).float()
            for scale in SCALES[1:] if self.multiscale else ():
                smaller = F.interpolate(normalized, scale_factor=scale, mode="bilinear", align_corners=False)
                total = total + subject.backbone(_whole_patches(smaller, patch)).float()
            return total / (len(SCALES) if self.multiscale else 1)

        return forward


def ground_truth(root: Path, name: str) -> GroundTruth:
    """The lists of root/<name>/gnd_<name>.pkl; a UserError where it is missing or is not as published."""
    file = root / name / f"gnd_{name}.pkl"
    if not file.is_file():
        raise UserError(f"{file}: there is no such file. retrieval.root = {root} should have {LAYOUT}.")
    found = safe_pickle.load(file)
    try:
        database, queries = ([str(each) for each in found[key]] for key in ("imlist", "qimlist"))
        entries = list(found["gnd"])
        boxes = [tuple(float(side) for side in entry["bbx"]) for entry in entries]
        labels = [
            {key: _rows(entry[key], len(database)) for key in ("easy", "hard", "junk")} for entry in entries
        ]
        if len(entries) != len(queries) or not queries or any(len(box) != 4 for box in boxes):
            raise ValueError(f"{len(queries)} queries and {len(entries)} entries")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file}: not the published list ({type(error).__name__}: {error}). It has imlist, qimlist and "
            "gnd, and for each query gnd has bbx, easy, hard and junk."
        ) from error
    jpg = root / name / "jpg"
    return GroundTruth(
        database=[jpg / f"{each}.jpg" for each in database],
        queries=[jpg / f"{each}.jpg" for each in queries],
        boxes=boxes,
        labels=labels,
    )


def _rows(values: Any, length: int) -> np.ndarray:
    """Numbers of database images, int64; an empty list may have any type."""
    rows = np.asarray(values).reshape(-1)
    if rows.size and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= length):
        raise ValueError(
            f"image numbers from 0 to {length - 1} are wanted, and there is {rows.tolist()}"[:200]
        )
    return rows.astype(np.int64)


def _add_figures(findings: Findings, name: str, truth: GroundTruth, orders: np.ndarray) -> None:
    details: dict[str, Any] = {"images": len(truth.database), "queries": len(truth.queries)}
    for level, (good, ignored) in LEVELS.items():
        found = scores(
            orders,
            [np.concatenate([labels[key] for key in good]) for labels in truth.labels],
            [np.concatenate([labels[key] for key in ignored]) for labels in truth.labels],
            KS,
        )
        details[f"queries_{level}"] = found.queries
        if not found.queries:
            findings.notes.append(f"{name}: no query has an image to be found at the level {level}.")
            continue
        findings.figures[f"{name}_map_{level}"] = 100 * found.mean_average_precision
        findings.figures[f"{name}_mp10_{level}"] = 100 * found.precision_at[10]
        details |= {f"mp{k}_{level}": 100 * found.precision_at[k] for k in KS}
    findings.details[name] = details


def _whole_patches(images: Tensor, patch: int) -> Tensor:
    """Without what remains at the right and below, as a convolution of that stride sees it."""
    height, width = (side // patch * patch for side in images.shape[-2:])
    return images[..., :height, :width]
