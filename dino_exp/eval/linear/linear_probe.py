"""Linear classification of frozen features (DINO, section 4.1 and the released eval_linear.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from dino_exp.config.evaluation_schema import LinearConfig
from dino_exp.errors import UserError
from dino_exp.eval.extraction import blocks_of
from dino_exp.eval.linear.linear_data import AugmentedRows, Choice, LabeledRows, choices
from dino_exp.eval.linear.linear_sweep import Classifiers, accuracies, train
from dino_exp.eval.linear.logistic import check_scikit_learn, convergence_notes, regressions
from dino_exp.eval.linear.stratified import classified, stratified
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed

STRENGTHS = {"sgd": ("lrs", "lr", "learning rate"), "logistic": ("cs", "c", "C")}
"""By method, what is swept besides the features: its key, its name in results, its name in sentences."""

USUAL_STEPS = 12_500
"""Ten passes over ImageNet, as in dinov2/eval/linear.py."""


class Setting(NamedTuple):
    """One classifier of the sweep."""

    choice: Choice
    strength: float
    """Learning rate or C."""


class Accuracies(NamedTuple):
    """Top-k accuracies of trained classifiers."""

    percent: np.ndarray
    """(settings, judged, ks); NaN where a classifier diverged."""
    unconverged: int = 0
    """Logistic regressions that stopped before the optimum."""


class SweepResult(NamedTuple):
    """The chosen setting and its accuracy."""

    chosen: int
    """Index of the setting."""
    scores: np.ndarray | None
    """Top-1 of each setting on the validation split in percent; None where nothing had to be chosen."""
    figures: np.ndarray
    """Top-k of the chosen classifier on the held-out images in percent, for each k."""
    learned: int
    """Images that the chosen classifier was trained on."""
    validation: int
    """Images of the validation split."""
    unconverged: int
    """Logistic regressions that stopped before the optimum."""


class Linear:
    """Accuracy of a linear classifier on the held-out images.

    A validation split of the training images chooses the setting. It is then trained on all training images
    and evaluated once on the held-out images, after the last epoch. eval_linear.py reports the best of all
    epochs on the held-out images, which is slightly higher.
    """

    def __init__(self, cfg: LinearConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError for images without classes, empty lists, or several settings without validation."""
        images, _, _ = classified(data.splits)
        strengths = STRENGTHS[self.cfg.method][0]
        for key in ("blocks", "patch_mean", strengths):
            if not getattr(self.cfg, key):
                raise UserError(f"linear.{key} = []: give at least one value.")
        if self.cfg.method == "logistic":
            check_scikit_learn()
            if self.cfg.augment:
                raise UserError("linear.augment = true: only linear.method=sgd trains on augmented images.")
        settings = self._settings(blocks_of(subject.backbone))
        if self.cfg.val_share:
            self._validation(cast(np.ndarray, images.labels), subject.seed)
        elif len(settings) > 1:
            raise UserError(
                f"linear.val_share = 0: nothing would choose among {len(settings)} settings; use "
                f"linear.val_share=0.1, or one value each in linear.blocks, linear.patch_mean and "
                f"linear.{strengths}."
            )

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Return the figures top1, top5 (with more than five classes) and val_top1 in percent; no files."""
        images, held_out, classes = classified(data.splits)
        features, test_features = data.features("train"), data.features("test")
        if not (distributed.is_main() or self.cfg.augment):
            return Findings()
        settings = self._settings(features.blocks)
        most = max(each.choice.blocks or 0 for each in settings)
        known = LabeledRows.of(features, most, images, subject.device)
        test = LabeledRows.of(test_features, most, held_out, subject.device)
        ks = [1, 5] if classes > 5 else [1]

        def accuracies_of(
            settings: list[Setting], rows: LabeledRows, judged: list[LabeledRows], ks: list[int]
        ) -> Accuracies:
            if self.cfg.method == "logistic":
                return self._logistic(settings, rows, judged, ks)
            scaling = rows.own_scaling(self.cfg.batch_size) if self.cfg.standardize else None
            learned: LabeledRows | AugmentedRows = replace(rows, scaling=scaling)
            if self.cfg.augment:
                learned = AugmentedRows(subject, images, features.indices[rows.rows], most, scaling)
            judged = [replace(each, scaling=scaling) for each in judged]
            return self._sgd(settings, learned, judged, ks, classes, subject)

        result = self._sweep(accuracies_of, settings, known, test, ks, subject.seed)
        findings = Findings({f"top{k}": float(each) for k, each in zip(ks, result.figures, strict=True)})
        findings.details = {
            "method": self.cfg.method,
            **self._described(settings[result.chosen]),
            "images": {"train": result.learned, "validation": result.validation, "test": len(test)},
            "classes": classes,
        }
        if result.scores is not None:
            findings.figures["val_top1"] = float(result.scores[result.chosen])
            findings.details["trained_again_on_all"] = not self.cfg.augment
            findings.details["settings"] = [
                {**self._described(each), "val_top1": None if math.isnan(score) else score}
                for each, score in zip(settings, result.scores.tolist(), strict=True)
            ]
        findings.notes = self._notes(settings, result) + convergence_notes(result.unconverged)
        return findings

    def _sweep(
        self,
        accuracies_of: Callable[[list[Setting], LabeledRows, list[LabeledRows], list[int]], Accuracies],
        settings: list[Setting],
        known: LabeledRows,
        test: LabeledRows,
        ks: list[int],
        seed: int,
    ) -> SweepResult:
        """Choose a setting by the validation split, train it, and evaluate it on `test`."""
        if not self.cfg.val_share:
            last = accuracies_of(settings, known, [test], ks)
            return SweepResult(0, None, last.percent[0, 0], len(known), 0, last.unconverged)
        val = replace(known, rows=self._validation(known.labels.cpu().numpy(), seed))
        rest = replace(known, rows=np.setdiff1d(known.rows, val.rows))
        judged, of_judged = ([val, test], ks) if self.cfg.augment else ([val], [1])
        swept = accuracies_of(settings, rest, judged, of_judged)
        scores, unconverged = swept.percent[:, 0, 0], swept.unconverged
        chosen = best([each.strength for each in settings], scores)
        if self.cfg.augment:  # training again would take as many forward passes again
            return SweepResult(chosen, scores, swept.percent[chosen, 1], len(rest), len(val), unconverged)
        last = accuracies_of([settings[chosen]], known, [test], ks)
        unconverged += last.unconverged
        return SweepResult(chosen, scores, last.percent[0, 0], len(known), len(val), unconverged)

    def _settings(self, available: int) -> list[Setting]:
        """Return all settings, small features first, and for each feature small strengths first."""
        strengths = sorted(set(getattr(self.cfg, STRENGTHS[self.cfg.method][0])))
        found = choices(self.cfg.blocks, self.cfg.patch_mean, available)
        return [Setting(choice, strength) for choice in found for strength in strengths]

    def _validation(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Return the rows of the validation split; every class keeps an image to learn from."""
        chosen = stratified(labels, self.cfg.val_share, seed, spare=1)
        if not len(chosen):
            raise UserError(
                f"linear.val_share = {self.cfg.val_share:g}: too small a share of {len(labels)} training "
                "images for a validation split; raise it."
            )
        return chosen

    def _sgd(
        self,
        settings: list[Setting],
        rows: LabeledRows | AugmentedRows,
        judged: list[LabeledRows],
        ks: list[int],
        classes: int,
        subject: Subject,
    ) -> Accuracies:
        classifiers = [
            Classifiers(
                judged[0].columns(choice),
                strengths,
                classes=classes,
                momentum=self.cfg.momentum,
                weight_decay=self.cfg.weight_decay,
                seed=subject.seed,
                device=subject.device,
            )
            for choice, strengths in _by_choice(settings).items()
        ]
        train(
            classifiers,
            lambda epoch: rows.epoch(epoch, subject.seed, self.cfg.batch_size),
            epochs=self.cfg.epochs or usual_epochs(len(rows), self.cfg.batch_size),
            batch_size=self.cfg.batch_size,
        )
        size = self.cfg.batch_size
        percent = [[accuracies(classifiers, each.batches(size), k) for k in ks] for each in judged]
        return Accuracies(np.array(percent).transpose(2, 0, 1))

    def _logistic(
        self, settings: list[Setting], rows: LabeledRows, judged: list[LabeledRows], ks: list[int]
    ) -> Accuracies:
        results = [
            regressions(rows.arrays(choice), [each.arrays(choice) for each in judged], strengths, ks)
            for choice, strengths in _by_choice(settings).items()
        ]
        percent, unconverged = zip(*results, strict=True)
        return Accuracies(np.concatenate(percent), sum(unconverged))

    def _described(self, setting: Setting) -> dict[str, Any]:
        choice, strength = setting
        name = STRENGTHS[self.cfg.method][1]
        return {"blocks": choice.blocks, "patch_mean": choice.patch_mean, name: strength}

    def _notes(self, settings: list[Setting], result: SweepResult) -> list[str]:
        chosen, scores = result.chosen, result.scores
        notes = []
        if settings[chosen].choice.blocks is None:
            notes.append(
                "The backbone has no class token, so its own feature is used; linear.blocks and "
                "linear.patch_mean are ignored."
            )
        elif max(self.cfg.blocks) > (available := max(each.choice.blocks or 0 for each in settings)):
            notes.append(f"linear.blocks = {self.cfg.blocks}: the backbone has {available}; more means all.")
        if math.isnan(result.figures[0]):
            notes.append("The classifier is not finite: features are not, or learning rates are too large.")
        if scores is None:
            return notes
        diverged = int(np.isnan(scores).sum())
        if diverged:
            notes.append(f"{diverged} of {len(scores)} classifiers diverged.")
        key, _, what = STRENGTHS[self.cfg.method]
        strength, of_choice = settings[chosen].strength, len(set(getattr(self.cfg, key)))
        position = chosen % of_choice
        for end, neighbor, most, more in (
            (0, chosen + 1, "smallest", "smaller"),
            (of_choice - 1, chosen - 1, "largest", "larger"),
        ):
            # If its neighbor is as good, the end of the list only won a tie.
            if of_choice > 1 and position == end and scores[neighbor] < scores[chosen]:
                notes.append(
                    f"The best {what}, {strength:g}, is the {most} in linear.{key}; try {more} ones too."
                )
        if self.cfg.augment:
            notes.append(
                f"Trained without the {result.validation} images of the validation split; to train on all "
                "images, give this setting alone and linear.val_share=0."
            )
        return notes


def usual_epochs(images: int, batch_size: int) -> int:
    """Return the number of epochs that make `USUAL_STEPS` steps, from 10 to 100."""
    return min(100, max(10, -(-USUAL_STEPS // -(-images // batch_size))))


def best(strengths: Sequence[float], scores: np.ndarray) -> int:
    """Return the index of the highest score; of equals the smallest strength, then the first. NaN loses."""
    return min(range(len(scores)), key=lambda n: (-np.nan_to_num(scores[n], nan=-1.0), strengths[n]))


def _by_choice(settings: list[Setting]) -> dict[Choice, list[float]]:
    strengths: dict[Choice, list[float]] = {}
    for choice, strength in settings:
        strengths.setdefault(choice, []).append(strength)
    return strengths
