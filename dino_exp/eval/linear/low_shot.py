"""Logistic regression on the features of few labeled images (DINO, appendix: low-shot learning)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dino_exp.config.evaluation_schema import LowShotConfig
from dino_exp.errors import UserError
from dino_exp.eval.linear.logistic import (
    FeaturesAndLabels,
    check_scikit_learn,
    convergence_notes,
    regressions,
)
from dino_exp.eval.linear.stratified import classified, stratified
from dino_exp.eval.subject import BlockFeatures, Findings, LabeledData, Subject
from dino_exp.parallel import distributed

FOLDS = 5
"""Folds of the cross-validation that chooses C; fewer if a class has fewer images."""
C_WITHOUT_CHOICE = 1.0
"""C if a class has a single image."""


class LowShot:
    """Top-1 of a classifier that learns from a share of the labels, the same share of every class."""

    def __init__(self, cfg: LowShotConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError for images without two classes, empty lists, or a missing scikit-learn."""
        classified(data.splits)
        check_scikit_learn()
        for key in ("shares", "cs"):
            if not getattr(self.cfg, key):
                raise UserError(f"low_shot.{key} = []: give at least one value.")

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Return a figure top1_share<share> for each share, the mean over its draws in percent; no files."""
        images, held_out, _ = classified(data.splits)
        known, test_features = data.features("train"), data.features("test")
        if not distributed.is_main():
            return Findings()
        labels = _labels(images.labels, known)
        test = test_features.final.numpy(), _labels(held_out.labels, test_features)
        findings, unconverged = Findings(), 0
        findings.details["shares"] = []
        for share in self.cfg.shares:
            top1, cs, rows = [], [], np.empty(0)
            # There is only one way to draw all images.
            for draw in range(self.cfg.draws if share < 1 else 1):
                rows = stratified(labels, share, [subject.seed, draw], at_least=1)
                train = known.final[torch.from_numpy(rows)].numpy(), labels[rows]
                c, of_choice = self._c(train, subject.seed)
                right, of_fit = regressions(train, [test], [c])
                top1.append(float(right[0, 0, 0]))
                cs.append(c)
                unconverged += of_choice + of_fit
            findings.figures[f"top1_share{share:g}"] = float(np.mean(top1))
            findings.details["shares"].append(
                {
                    "share": share,
                    "images": len(rows),
                    "top1": top1,
                    "std": float(np.std(top1, ddof=1)) if len(top1) > 1 else None,
                    "c": cs,
                }
            )
            if len(rows) > 1.2 * share * len(labels):
                findings.notes.append(
                    f"A share of {share:g} became {len(rows)} images ({len(rows) / len(labels):.1%}): one of "
                    "each class at least."
                )
            if len(self.cfg.cs) > 1 and _smallest(labels[rows]) < 2:
                findings.notes.append(
                    f"With a share of {share:g}, some class has a single image: C is {C_WITHOUT_CHOICE:g}, "
                    "without cross-validation."
                )
        findings.details["images"] = {"train": len(labels), "test": len(test[1])}
        findings.notes += convergence_notes(unconverged)
        return findings

    def _c(self, train: FeaturesAndLabels, seed: int) -> tuple[float, int]:
        """Return C by cross-validation, the smallest of equals, and the number of unconverged fits."""
        from sklearn.model_selection import StratifiedKFold

        features, labels = train
        folds = min(FOLDS, _smallest(labels))
        if len(self.cfg.cs) == 1:
            return self.cfg.cs[0], 0
        if folds < 2:
            return C_WITHOUT_CHOICE, 0
        cs = sorted(set(self.cfg.cs))
        right, unconverged = np.zeros(len(cs)), 0
        for learn, judge in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels):
            judged = features[judge], labels[judge]
            result, of_fold = regressions((features[learn], labels[learn]), [judged], cs)
            right += result[:, 0, 0] * len(judge)
            unconverged += of_fold
        return cs[int(right.argmax())], unconverged


def _labels(of_source: np.ndarray | None, features: BlockFeatures) -> np.ndarray:
    """Return the label of each row of the features, int64 (N,)."""
    return np.asarray(of_source)[features.indices.numpy()]


def _smallest(labels: np.ndarray) -> int:
    """Return the number of images of the rarest class."""
    return int(np.unique(labels, return_counts=True)[1].min())
