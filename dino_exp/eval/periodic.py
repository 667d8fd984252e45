"""The evaluations of a training run: those of `evaluate.py`, every few epochs, on features in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import nn

from dino_exp.config.evaluation_schema import EVALUATIONS, EvalConfig
from dino_exp.config.schema import Config
from dino_exp.config.targets import build_from
from dino_exp.data.decoding import Decoding
from dino_exp.data.source import Splits
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.eval.extraction import blocks_of, extract, pixels
from dino_exp.eval.features import eval_mode
from dino_exp.eval.mirror import IMAGES
from dino_exp.eval.subject import (
    BlockFeatures,
    DivergedError,
    Evaluation,
    Subject,
    has_labels,
    labeled,
)
from dino_exp.parallel import distributed

log = logging.getLogger(__name__)


def subject_of(cfg: Config, backbone: nn.Module, device: torch.device, workers: int = 0) -> Subject:
    """Return a backbone of a training run as evaluations are given it, in float32."""
    return Subject(
        name="teacher",
        digest="",
        backbone=backbone,
        device=device,
        autocast_type=None,
        image_size=cfg.crops.global_size,
        crop_ratio=cfg.eval.crop_ratio,
        decoding=Decoding.of_config(cfg.data),
        mean=tuple(cfg.data.mean),
        std=tuple(cfg.data.std),
        batch_size=cfg.eval.batch_size,
        workers=workers,
        seed=0,  # as evaluate.py's, and equal for all runs of a sweep
    )


class Round(NamedTuple):
    """What the evaluations found at one step."""

    figures: dict[str, float]
    """In percent, by the name of the metric: knn_top1, linear/top1. The first decides what is the best."""
    images: dict[str, Path]
    """Plots, by the name that trackers know them by: eval/attention/attention."""


def main_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the first figure of each evaluation in a line of metrics: knn_top1, linear/top1."""
    found: dict[str, tuple[str, float]] = {}
    for name, value in metrics.items():
        evaluation = "knn" if name == "knn_top1" else name.partition("/")[0]
        if evaluation in EVALUATIONS and value is not None:
            found.setdefault(evaluation, (name, value))
    return dict(found.values())


@dataclass
class InMemory:
    """`LabeledData` of a part of the images, whose features are extracted at the first use."""

    subject: Subject
    splits: Splits
    sizes: dict[str, int | None]
    """Images of `train` and `test` that are used, evenly spread; None is all."""
    blocks: int = 0
    known: dict[str, BlockFeatures] = field(default_factory=dict)

    def features(self, split: str) -> BlockFeatures:
        """Return the features of the images of `train` or `test`; all processes call it, and get all.

        Raises:
            DivergedError: they are not finite.
        """
        if split not in self.known:
            source = self.splits.train if split == "train" else self.splits.test
            assert source is not None
            indices = evenly_spread(len(source), self.sizes[split])
            self.known[split] = extract(self.subject, source, indices, blocks=self.blocks)
        if not self.known[split].is_finite():
            raise DivergedError(self.subject.name)
        return self.known[split]


class PeriodicEvaluations:
    """The evaluations of `eval=[knn,linear]`, the best figure so far, and those before the first step.

    Args:
        cfg: which evaluations, and of how many images.
        subject: the teacher, and how it is given images.
        splits: the images of the run.

    Raises:
        UserError: an evaluation cannot work with these images or this network. Without labels k-NN is off.
    """

    def __init__(self, cfg: EvalConfig, subject: Subject, splits: Splits) -> None:
        self.cfg, self.subject, self.splits = cfg, subject, splits.evaluated
        nodes = cfg.nodes()
        self.misses_labels = "knn" in nodes and not has_labels(self.splits)
        """k-NN was asked for, and is off."""
        if self.misses_labels:
            del nodes["knn"]
        self.evaluations: dict[str, Evaluation] = {
            name: build_from(OmegaConf.structured(node)) for name, node in nodes.items()
        }
        self.blocks = min(max(cfg.linear.blocks, default=0), blocks_of(subject.backbone)) if cfg.linear else 0
        self.first: dict[str, float] = {}
        """Figures before the first step: of an untrained network, unless the run began with weights."""
        self.best: dict[str, float] = {}
        """The figure that decides, by its name, at its best."""
        for name, evaluation in self.evaluations.items():
            try:
                evaluation.check(subject, self._data(subject))
            except UserError as error:
                raise UserError(f"eval = {name}: {error}") from None

    def evaluate(self, folder: Path, student: nn.Module | None = None) -> Round:
        """Evaluate the teacher, and the student by k-NN; all processes call it.

        Files go into `folder`, one folder for each evaluation, in the place of those of the round before.
        """
        found, data = Round({}, {}), self._data(self.subject)
        with eval_mode(self.subject.backbone):
            for name, evaluation in self.evaluations.items():
                if name == "knn":
                    found.figures["knn_top1"] = self._knn_top1(data)
                    if student is not None:
                        subject = replace(self.subject, name="student", backbone=student)
                        found.figures["student_knn_top1"] = self._knn_top1(self._data(subject))
                    continue
                try:
                    findings = evaluation.evaluate(self.subject, data, folder / name)
                except DivergedError as error:
                    log.warning("%s is skipped: %s", name, error)
                    continue
                found.figures.update({f"{name}/{key}": value for key, value in findings.figures.items()})
                for file in findings.files:
                    if file.suffix in IMAGES:
                        found.images[f"eval/{name}/{file.stem}"] = file
        paths = {name: str(path) for name, path in found.images.items()}
        figures, paths = distributed.from_main((found.figures, paths))
        return Round(figures, {name: Path(path) for name, path in paths.items()})

    def pixels_top1(self) -> float:
        """Return the baseline in percent: the same k-NN on raw pixels, mean-centered, of the same images."""
        train, test = labeled(self.splits)
        data = self._data(self.subject)
        chosen = (
            evenly_spread(len(train), data.sizes["train"]),
            evenly_spread(len(test), data.sizes["test"]),
        )
        bank, queries = pixels(self.subject, train, chosen[0], test, chosen[1])
        data.known = {"train": bank, "test": queries}
        return self._knn_top1(data)

    def improved(self, figures: dict[str, float]) -> bool:
        """Return whether the first of the figures, the teacher's, is better than ever, and remember it."""
        name, value = next(iter(figures.items()), ("", math.nan))
        if not value > self.best.get(name, -math.inf):
            return False
        self.best = {name: value}
        return True

    def state(self) -> dict[str, Any]:
        """Return what a resume needs."""
        return {
            "best_knn": self.best.get("knn_top1", -1.0),
            "untrained_knn": self.first.get("knn_top1"),
            "best_figure": self.best,
            "first_figures": self.first,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`, perhaps of an earlier version, which had k-NN alone."""
        best, first = state["best_knn"], state["untrained_knn"]
        self.best = state.get("best_figure", {"knn_top1": best} if best >= 0 else {})
        self.first = state.get("first_figures", {} if first is None else {"knn_top1": first})

    def _data(self, subject: Subject) -> InMemory:
        sizes = {"train": self.cfg.bank_size, "test": self.cfg.query_size}
        return InMemory(subject, self.splits, sizes, self.blocks if subject is self.subject else 0)

    def _knn_top1(self, data: InMemory) -> float:
        """Return the percentage of right classes; NaN where features are not finite."""
        try:
            findings = self.evaluations["knn"].evaluate(data.subject, data, Path())
        except DivergedError:
            return math.nan
        return findings.figures[f"top1_k{self.cfg.k}"]
