"""Linear classification of frozen features (DINO, section 4.1 and the released eval_linear.py)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from dino_exp.backbone.tokens import has_block_tokens
from dino_exp.errors import UserError
from dino_exp.eval.linear.linear_data import AugmentedRows, Choice, LabeledRows, choices
from dino_exp.eval.linear.linear_sweep import Classifiers, accuracies, train
from dino_exp.eval.linear.logistic import cut_short, need_scikit_learn, regressions
from dino_exp.eval.linear.stratified import classified, stratified
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel import distributed

STRENGTHS = {"sgd": ("lrs", "lr", "learning rate"), "logistic": ("cs", "c", "C")}
"""What is swept besides the features: its key, its name in results, its name in sentences."""


USUAL_STEPS = 12_500
"""Ten passes over ImageNet, as in dinov2/eval/linear.py."""


class Setting(NamedTuple):
    """One classifier of the sweep."""

    choice: Choice
    strength: float
    """Learning rate or C."""


class Accuracies(NamedTuple):
    """What was trained, judged."""

    right: np.ndarray
    """(settings, judged, ks) in percent; NaN where a classifier diverged."""
    short: int = 0
    """Logistic regressions that ended before the optimum."""


class Outcome(NamedTuple):
    """What came of the sweep."""

    chosen: int
    """Place of the setting."""
    scores: np.ndarray | None
    """Percent of the validation split that each setting has right; None where nothing was to choose."""
    figures: np.ndarray
    """Percent of the held-out images, for each k."""
    learned: int
    """Images that the classifier behind `figures` learned from."""
    validation: int
    short: int


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Accuracy of a linear classifier on the held-out images; fields as in `LinearConfig`.

    A validation split of the training images chooses the setting, which is then trained on all of them and
    judged once on the held-out images, after the last epoch. eval_linear.py gives the best of all epochs on
    the held-out images, which is a little more.
    """

    method: str
    blocks: list[int]
    patch_mean: list[bool]
    lrs: list[float]
    cs: list[float]
    epochs: int | None
    batch_size: int
    momentum: float
    weight_decay: float
    val_share: float
    augment: bool
    standardize: bool

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError for images without classes, blocks that are not there, and no way to choose."""
        images, _, _ = classified(data.splits)
        strengths = STRENGTHS[self.method][0]
        for key in ("blocks", "patch_mean", strengths):
            if not getattr(self, key):
                raise UserError(f"linear.{key} = []: give one value at least.")
        if self.method == "logistic":
            need_scikit_learn()
            if self.augment:
                raise UserError("linear.augment = true: only linear.method=sgd trains on images cut anew.")
        backbone = subject.backbone
        settings = self._settings(len(cast(Any, backbone.blocks)) if has_block_tokens(backbone) else 0)
        if self.val_share:
            self._validation(cast(np.ndarray, images.labels), subject.seed)
        elif len(settings) > 1:
            raise UserError(
                f"linear.val_share = 0: nothing would choose among {len(settings)} settings; use "
                f"linear.val_share=0.1, or one value each in linear.blocks, linear.patch_mean and "
                f"linear.{strengths}."
            )

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Figures top1, top5 (of more than five classes) and val_top1, in percent; no files."""
        images, held_out, classes = classified(data.splits)
        features, test_features = data.features("train"), data.features("test")
        if not (distributed.is_main() or self.augment):
            return Findings()
        settings = self._settings(features.blocks)
        most = max(each.choice.blocks or 0 for each in settings)
        known = LabeledRows.of(features, most, images, subject.device)
        test = LabeledRows.of(test_features, most, held_out, subject.device)
        ks = [1, 5] if classes > 5 else [1]

        def accuracies_of(
            settings: list[Setting], rows: LabeledRows, judged: list[LabeledRows], ks: list[int]
        ) -> Accuracies:
            if self.method == "logistic":
                return self._logistic(settings, rows, judged, ks)
            scaling = rows.own_scaling(self.batch_size) if self.standardize else None
            learned: LabeledRows | AugmentedRows = rows.scaled_by(scaling)
            if self.augment:
                learned = AugmentedRows(subject, images, features.indices[rows.numbers], most, scaling)
            judged = [each.scaled_by(scaling) for each in judged]
            return self._sgd(settings, learned, judged, ks, classes, subject)

        outcome = self._outcome(accuracies_of, settings, known, test, ks, subject.seed)
        findings = Findings({f"top{k}": float(each) for k, each in zip(ks, outcome.figures, strict=True)})
        findings.details = {
            "method": self.method,
            **self._described(settings[outcome.chosen]),
            "images": {"train": outcome.learned, "validation": outcome.validation, "test": len(test)},
            "classes": classes,
        }
        if outcome.scores is not None:
            findings.figures["val_top1"] = float(outcome.scores[outcome.chosen])
            findings.details["trained_again_on_all"] = not self.augment
            findings.details["settings"] = [
                {**self._described(each), "val_top1": None if math.isnan(score) else score}
                for each, score in zip(settings, outcome.scores.tolist(), strict=True)
            ]
        findings.notes = self._notes(settings, outcome) + cut_short(outcome.short)
        return findings

    def _outcome(
        self,
        accuracies_of: Callable[[list[Setting], LabeledRows, list[LabeledRows], list[int]], Accuracies],
        settings: list[Setting],
        known: LabeledRows,
        test: LabeledRows,
        ks: list[int],
        seed: int,
    ) -> Outcome:
        """Choose, train, judge."""
        if not self.val_share:
            last = accuracies_of(settings, known, [test], ks)
            return Outcome(0, None, last.right[0, 0], len(known), 0, last.short)
        val = known.part(self._validation(known.labels.cpu().numpy(), seed))
        rest = known.part(np.setdiff1d(known.numbers, val.numbers))
        judged, of_judged = ([val, test], ks) if self.augment else ([val], [1])
        swept = accuracies_of(settings, rest, judged, of_judged)
        scores = swept.right[:, 0, 0]
        chosen = best([each.strength for each in settings], scores)
        if self.augment:  # training again would take as many forward passes again
            return Outcome(chosen, scores, swept.right[chosen, 1], len(rest), len(val), swept.short)
        last = accuracies_of([settings[chosen]], known, [test], ks)
        return Outcome(chosen, scores, last.right[0, 0], len(known), len(val), swept.short + last.short)

    def _settings(self, available: int) -> list[Setting]:
        """All of them, small features first, and small strengths first for each."""
        strengths = sorted(set(getattr(self, STRENGTHS[self.method][0])))
        found = choices(self.blocks, self.patch_mean, available)
        return [Setting(choice, strength) for choice in found for strength in strengths]

    def _validation(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Row numbers of the validation split; every class keeps an image to learn from."""
        chosen = stratified(labels, self.val_share, seed, leave=1)
        if not len(chosen):
            raise UserError(
                f"linear.val_share = {self.val_share:g}: too little of {len(labels)} training images to "
                f"validate on; raise it."
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
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                seed=subject.seed,
                device=subject.device,
            )
            for choice, strengths in _by_choice(settings).items()
        ]
        train(
            classifiers,
            lambda epoch: rows.epoch(epoch, subject.seed, self.batch_size),
            epochs=self.epochs or usual_epochs(len(rows), self.batch_size),
            batch_size=self.batch_size,
        )
        right = [[accuracies(classifiers, each.batches(self.batch_size), k) for k in ks] for each in judged]
        return Accuracies(np.array(right).transpose(2, 0, 1))

    def _logistic(
        self, settings: list[Setting], rows: LabeledRows, judged: list[LabeledRows], ks: list[int]
    ) -> Accuracies:
        results = [
            regressions(rows.arrays(choice), [each.arrays(choice) for each in judged], strengths, ks)
            for choice, strengths in _by_choice(settings).items()
        ]
        return Accuracies(np.concatenate([right for right, _ in results]), sum(short for _, short in results))

    def _described(self, setting: Setting) -> dict[str, Any]:
        choice, strength = setting
        name = STRENGTHS[self.method][1]
        return {"blocks": choice.blocks, "patch_mean": choice.patch_mean, name: strength}

    def _notes(self, settings: list[Setting], outcome: Outcome) -> list[str]:
        chosen, scores = outcome.chosen, outcome.scores
        notes = []
        if settings[chosen].choice.blocks is None:
            notes.append(
                "The backbone has no class token: its own feature is the only choice, whatever linear.blocks "
                "and linear.patch_mean say."
            )
        elif max(self.blocks) > max(each.choice.blocks or 0 for each in settings):
            there = max(each.choice.blocks or 0 for each in settings)
            notes.append(
                f"linear.blocks = {self.blocks}: the backbone has {there} blocks; more is all of them."
            )
        if math.isnan(outcome.figures[0]):
            notes.append("The classifier is not finite: features are not, or learning rates are too large.")
        if scores is None:
            return notes
        diverged = int(np.isnan(scores).sum())
        if diverged:
            notes.append(f"{diverged} of {len(scores)} classifiers diverged.")
        key, _, what = STRENGTHS[self.method]
        strength, of_choice = settings[chosen].strength, len(set(getattr(self, key)))
        place = chosen % of_choice
        for end, neighbor, most, more in (
            (0, chosen + 1, "smallest", "smaller"),
            (of_choice - 1, chosen - 1, "largest", "larger"),
        ):
            # Where the next is as good, the end of the list is only the tie's.
            if of_choice > 1 and place == end and scores[neighbor] < scores[chosen]:
                notes.append(
                    f"The best {what}, {strength:g}, is the {most} of linear.{key}; a {more} one may be "
                    f"better."
                )
        if self.augment:
            notes.append(
                f"Trained without the {outcome.validation} images that chose the setting; "
                f"linear.val_share=0 with this setting alone trains on all."
            )
        return notes


def usual_epochs(images: int, batch_size: int) -> int:
    """As many as make `USUAL_STEPS`, from 10 to 100."""
    return min(100, max(10, -(-USUAL_STEPS // -(-images // batch_size))))


def best(strengths: Sequence[float], scores: np.ndarray) -> int:
    """Place of the highest score, of equal ones the smallest strength, then the first; NaN is the lowest."""
    return min(range(len(scores)), key=lambda n: (-np.nan_to_num(scores[n], nan=-1.0), strengths[n]))


def _by_choice(settings: list[Setting]) -> dict[Choice, list[float]]:
    strengths: dict[Choice, list[float]] = {}
    for choice, strength in settings:
        strengths.setdefault(choice, []).append(strength)
    return strengths
