"""The evaluations of a training run, on images and networks that the test knows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dino_exp.config.evaluation_schema import EvalConfig
from dino_exp.data.source import Splits
from dino_exp.errors import UserError
from dino_exp.eval.periodic import PeriodicEvaluations, main_figures
from tests.data.sources import labels_of
from tests.eval.subjects import dark_and_bright, subject


class Contrast(nn.Module):
    """(mean, 1): images below the normalization's mean point one way, those above it another."""

    feature_dim = 2

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(1, 2, 3))
        return self.scale * torch.stack([means, torch.full_like(means, 0.1)], dim=1)


def knn(splits: Splits, scale: float = 1.0, *, k: int | None = 5, **sizes: Any) -> PeriodicEvaluations:
    teacher = replace(subject(Contrast(scale), image_size=8), mean=(0.45,) * 3, std=(0.25,) * 3)
    return PeriodicEvaluations(EvalConfig(k=k, **sizes), teacher, splits)


def test_knn_goes_from_images_to_percent(tmp_path: Path) -> None:
    train, test = dark_and_bright(40, 0), dark_and_bright(16, 1)
    splits = Splits(train, test)
    assert knn(splits, bank_size=20, query_size=9).evaluate(tmp_path).figures == {"knn_top1": 100.0}
    assert knn(splits).pixels_top1() == 100.0
    test.labels = 1 - labels_of(test)
    both = knn(splits).evaluate(tmp_path, student=Contrast())
    assert both.figures == {"knn_top1": 0.0, "student_knn_top1": 0.0}
    assert (both.images, list(tmp_path.iterdir())) == ({}, [])


def test_features_that_are_not_finite_are_no_score(tmp_path: Path) -> None:
    diverged = knn(Splits(dark_and_bright(40, 0), dark_and_bright(16, 1)), math.nan)
    figures = diverged.evaluate(tmp_path).figures
    assert math.isnan(figures["knn_top1"])
    assert not diverged.improved(figures)


def test_the_first_figure_decides_what_is_best() -> None:
    evaluations = knn(Splits(dark_and_bright(4, 0), dark_and_bright(4, 1)), k=1)
    assert evaluations.improved({"knn_top1": 50.0, "linear/top1": 90.0})
    assert not evaluations.improved({"knn_top1": 50.0, "linear/top1": 95.0})
    assert evaluations.improved({"knn_top1": 51.0, "linear/top1": 60.0})
    assert not evaluations.improved({})
    resumed = knn(evaluations.splits, k=1)
    resumed.restore(evaluations.state())
    assert not resumed.improved({"knn_top1": 51.0})
    assert resumed.improved({"linear/top1": 1.0})  # another figure has no best yet
    resumed.restore({"best_knn": 60.0, "untrained_knn": 20.0})  # a checkpoint of before there were others
    assert (resumed.best, resumed.first) == ({"knn_top1": 60.0}, {"knn_top1": 20.0})
    resumed.restore({"best_knn": -1.0, "untrained_knn": None})
    assert (resumed.best, resumed.first) == ({}, {})


def test_main_figures_are_the_first_of_each_evaluation() -> None:
    metrics = {"loss": 1.0, "teacher/entropy": 2.0, "knn_top1": 50.0, "student_knn_top1": 49.0}
    others = {"linear/top1": 70.0, "linear/val_top1": 71.0, "attention/jaccard_mean": 30.0}
    assert main_figures(metrics | others) == {
        "knn_top1": 50.0,
        "linear/top1": 70.0,
        "attention/jaccard_mean": 30.0,
    }


def test_without_labels_k_nn_is_off_and_other_classes_are_refused() -> None:
    train, test = dark_and_bright(40, 0), dark_and_bright(16, 1)
    test.classes = ["dark", "dim"]
    with pytest.raises(UserError, match="bright, dim"):
        knn(Splits(train, test))
    train.labels = None
    for held_out, message in ((None, "held-out"), (test, "training images have no labels")):
        off = knn(Splits(train, held_out))
        assert (off.misses_labels, off.evaluations) == (True, {})
        with pytest.raises(UserError, match=message):
            off.pixels_top1()
