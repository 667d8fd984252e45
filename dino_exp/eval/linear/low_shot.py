"""Logistic regression on the features of few labeled images (DINO, appendix: low-shot learning)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dino_exp.errors import UserError
from dino_exp.eval.linear.logistic import Labeled, cut_short, need_scikit_learn, regressions
from dino_exp.eval.linear.stratified import classified, stratified
from dino_exp.eval.subject import BlockFeatures, Findings, LabeledData, Subject
from dino_exp.parallel import distributed

FOLDS = 5
"""Of the cross-validation that chooses C, where every class has so many images."""
C_WITHOUT_CHOICE = 1.0
"""Where a class has a single image."""


@dataclass(frozen=True, kw_only=True)
class LowShot:
    """Top-1 with a share of the labels, of every class the same; fields as in `LowShotConfig`."""

    shares: list[float]
    draws: int
    cs: list[float]

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError for images without two classes, empty lists, or no scikit-learn."""
        classified(data.splits)
        need_scikit_learn()
        for key in ("shares", "cs"):
            if not getattr(self, key):
                raise UserError(f"low_shot.{key} = []: give one value at least.")

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """A figure top1_share<share> for each share, the mean over its draws in percent; no files."""
        images, held_out, _ = classified(data.splits)
        known, test_features = data.features("train"), data.features("test")
        if not distributed.is_main():
            return Findings()
        labels = _labels(images.labels, known)
        test = test_features.final.numpy(), _labels(held_out.labels, test_features)
        findings, short = Findings(), 0
        findings.details["shares"] = []
        for share in self.shares:
            top1, cs, rows = [], [], np.empty(0)
            # All images can be drawn in one way only.
            for draw in range(self.draws if share < 1 else 1):
                rows = stratified(labels, share, [subject.seed, draw], at_least=1)
                train = known.final[torch.from_numpy(rows)].numpy(), labels[rows]
                c, of_choice = self._c(train, subject.seed)
                right, of_fit = regressions(train, [test], [c])
                top1.append(float(right[0, 0, 0]))
                cs.append(c)
                short += of_choice + of_fit
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
                    f"A share of {share:g} is {len(rows)} images, {len(rows) / len(labels):.1%} of them: "
                    "one of each class at least."
                )
            if len(self.cs) > 1 and _smallest(labels[rows]) < 2:
                findings.notes.append(
                    f"A share of {share:g} leaves a class a single image, so C is {C_WITHOUT_CHOICE:g} "
                    f"instead of chosen by cross-validation."
                )
        findings.details["images"] = {"train": len(labels), "test": len(test[1])}
        findings.notes += cut_short(short)
        return findings

    def _c(self, train: Labeled, seed: int) -> tuple[float, int]:
        """C by cross-validation, of equally good ones the smallest; and how many fits fell short."""
        from sklearn.model_selection import StratifiedKFold

        features, labels = train
        folds = min(FOLDS, _smallest(labels))
        if len(self.cs) == 1:
            return self.cs[0], 0
        if folds < 2:
            return C_WITHOUT_CHOICE, 0
        cs = sorted(set(self.cs))
        right, short = np.zeros(len(cs)), 0
        for learn, judge in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels):
            judged = features[judge], labels[judge]
            result, of_fold = regressions((features[learn], labels[learn]), [judged], cs)
            right += result[:, 0, 0] * len(judge)
            short += of_fold
        return cs[int(right.argmax())], short


def _labels(of_source: np.ndarray | None, features: BlockFeatures) -> np.ndarray:
    """int64 (N,), of the rows."""
    return np.asarray(of_source)[features.indices.numpy()]


def _smallest(labels: np.ndarray) -> int:
    """Images of the rarest class."""
    return int(np.unique(labels, return_counts=True)[1].min())
