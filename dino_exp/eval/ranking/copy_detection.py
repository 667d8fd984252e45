"""Copy detection on INRIA Copydays, the strong subset (Douze et al. 2009), by a network's features alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from dino_exp.backbone.tokens import block_tokens, has_block_tokens, spatial_features
from dino_exp.config.evaluation_schema import CopyDetectionConfig
from dino_exp.data.image_scan import images_in
from dino_exp.errors import UserError
from dino_exp.eval.network_input import patch_side
from dino_exp.eval.ranking.average_precision import average_precision, best_first
from dino_exp.eval.ranking.image_files import check_takes, features_of, images_below
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed
from dino_exp.paths import expanded

LAYOUT = (
    "root/original/*.jpg and root/strong/*.jpg, copies named as their original in the first four characters"
)
GEM_POWER = 4
RANKED = 20
"""An original that is not among this many first images counts as not found, as in the released code."""


class CopyDetection:
    """Mean average precision of finding the originals of strongly edited copies.

    As in the released `eval_copy_detection.py`: images are squeezed to a square, features are the class token
    and the pooled patch tokens, and copies are looked up among originals and distractors.
    """

    def __init__(self, cfg: CopyDetectionConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError if folders or originals are missing, or the size does not fit the network."""
        originals, copies = self._copydays()
        originals_of(copies, originals)
        _listed("whitening", self.cfg.whitening)
        _listed("distractors", self.cfg.distractors)
        patch, size = patch_side(subject.backbone), self.cfg.image_size
        if size % patch:
            below = size // patch * patch
            raise UserError(
                f"copy_detection.image_size = {size}: not a multiple of backbone.patch_size = {patch}; "
                f"nearest are {below or patch} and {below + patch}."
            )
        check_takes("copy_detection.image_size", size, (size, size), _forward(subject), subject)

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Return the figure `map_strong`, the mean over all copies."""
        originals, copies = self._copydays()
        distractors = _listed("distractors", self.cfg.distractors)
        others = _listed("whitening", self.cfg.whitening)
        queries = self._features(copies, subject)
        database = self._features(originals + distractors, subject)
        whitening_features = self._features(others, subject) if others else None
        if not distributed.is_main():
            return Findings()
        if whitening_features is not None:
            whiten = whitening(whitening_features)
            queries, database = whiten(queries), whiten(database)
        orders = best_first(queries, database, RANKED)
        positives = originals_of(copies, originals)
        precisions = [
            average_precision([rank for rank, row in enumerate(order) if row in right], len(right))
            for order, right in zip(orders, positives, strict=True)
        ]
        return Findings(
            figures={"map_strong": 100 * sum(precisions) / len(precisions)},
            details={
                "copies": len(copies),
                "originals": len(originals),
                "distractors": len(distractors),
                "whitening_images": len(others),
            },
            notes=self._notes(len(others), queries.shape[1]),
        )

    def _copydays(self) -> tuple[list[Path], list[Path]]:
        """Return originals and strong copies, each sorted by name."""
        if self.cfg.root is None:
            raise UserError(
                f"copy_detection.root = null: give the folder of Copydays. The layout is {LAYOUT}."
            )
        root = expanded(self.cfg.root)
        originals, copies = (images_in(root / part) for part in ("original", "strong"))
        for part, files in (("original", originals), ("strong", copies)):
            if not files:
                raise UserError(f"{root / part}: no images there. The layout is {LAYOUT}.")
        return originals, copies

    def _features(self, files: list[Path], subject: Subject) -> Tensor:
        return features_of(files, self._prepare, _forward(subject), subject)

    def _prepare(self, index: int, image: Image.Image) -> Image.Image:
        return image.resize((self.cfg.image_size, self.cfg.image_size), Image.Resampling.BICUBIC)

    def _notes(self, whitened_on: int, dimensions: int) -> list[str]:
        notes = []
        if self.cfg.distractors is None or self.cfg.whitening is None:
            notes.append(
                "The paper uses 10,000 distractors, and whitening learned on 20,000 other images, both from "
                "YFCC100M (copy_detection.distractors and copy_detection.whitening)."
            )
        if 0 < whitened_on < dimensions:
            notes.append(
                f"Whitening was learned on {whitened_on:,} images, fewer than the features' {dimensions:,} "
                "dimensions, so many directions are scaled by rounding errors."
            )
        return notes


def originals_of(copies: list[Path], originals: list[Path]) -> list[set[int]]:
    """Return the indices of each copy's originals. Raises UserError, naming a copy without an original."""
    by_prefix: dict[str, set[int]] = {}
    for index, original in enumerate(originals):
        by_prefix.setdefault(original.name[:4], set()).add(index)
    for copy in copies:
        if copy.name[:4] not in by_prefix:
            raise UserError(
                f"{copy}: no original {copy.name[:4]}*.jpg in {originals[0].parent}. The layout is {LAYOUT}."
            )
    return [by_prefix[copy.name[:4]] for copy in copies]


def generalized_mean(features: Tensor) -> Tensor:
    """GeM pooling with power 4 (Radenovic et al. 2019) over n positions, (B, n, D) -> (B, D).

    Values below 1e-6 count as 1e-6.
    """
    return features.clamp(min=1e-6).pow(GEM_POWER).mean(dim=1).pow(1 / GEM_POWER)


def descriptor(backbone: nn.Module, images: Tensor) -> Tensor:
    """Concatenate the network's own feature and its pooled spatial features, (B, C, H, W) -> (B, D + D').

    For a transformer these are the class token and the patch tokens of the last block, after the final norm.
    """
    if has_block_tokens(backbone):
        tokens = block_tokens(backbone, images, 1)
        assert tokens is not None
        own, spatial = tokens[-1]
    else:
        own, spatial = backbone(images), spatial_features(backbone, images).flatten(2).transpose(1, 2)
    return torch.cat((own.float(), generalized_mean(spatial.float())), dim=1)


def whitening(features: Tensor) -> Callable[[Tensor], Tensor]:
    """Learn whitening on the features (N, D) of other images; the returned function maps (M, D) to (M, D).

    As in the released code, it subtracts the mean, while directions and scales are those of the second
    moments about 0 (scikit-learn's PCA takes them about the mean). Scales are clamped to at least 1e-5 of
    the largest second moment.
    """
    features = features.double()
    mean = features.mean(dim=0)
    strengths, directions = torch.linalg.eigh(features.t() @ features / len(features))
    scaled = directions / strengths.clamp(min=float(strengths.max()) * 1e-5).sqrt()
    return lambda rows: ((rows.double() - mean) @ scaled).float()


def _listed(field: str, folder: str | None) -> list[Path]:
    return [] if folder is None else images_below(f"copy_detection.{field}", expanded(folder))


def _forward(subject: Subject) -> Callable[[Tensor], Tensor]:
    return lambda images: descriptor(subject.backbone, subject.normalized(images))
