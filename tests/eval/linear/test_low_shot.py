"""Low-shot classification: which images keep their labels, and the same regression as scikit-learn's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dino_exp.config.evaluation_schema import LowShotConfig
from dino_exp.data.source import Splits
from dino_exp.errors import UserError
from dino_exp.eval.linear.low_shot import LowShot
from dino_exp.eval.linear.stratified import stratified
from tests.eval.subjects import GivenData, images, labeled_data, subject

CS = [10.0, 0.001, 0.1, 1.0]


def clouds(counts: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features (N, 3, 8), whose last class token, row 1, tells the classes; and labels."""
    centers = torch.randn(len(counts), 8, generator=torch.Generator().manual_seed(0))
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    features = torch.randn(len(labels), 3, 8, generator=torch.Generator().manual_seed(seed))
    features[:, 1] = 5 + 3 * (centers[labels] + features[:, 1])
    return features, labels


def given(counts: list[int]) -> GivenData:
    return labeled_data(*clouds(counts, 1), *clouds([40] * len(counts), 2))


def low_shot(**changes: Any) -> LowShot:
    fields: dict[str, Any] = dict(draws=1, cs=CS)
    return LowShot(LowShotConfig(**fields | changes))


def test_each_class_has_its_share_and_at_least_one() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [100, 36, 4]))
    rows = stratified(labels, 0.1, 0, at_least=1)
    assert np.bincount(labels[rows]).tolist() == [10, 4, 0, 1]
    assert (np.diff(rows) > 0).all()
    assert set(rows) < set(stratified(labels, 0.5, 0, at_least=1))
    assert set(rows) != set(stratified(labels, 0.1, 1, at_least=1))
    assert np.bincount(labels[stratified(labels, 0.1, 0)]).tolist() == [10, 4]
    assert np.bincount(labels[stratified(labels, 1.0, 0, spare=1)]).tolist() == [99, 35, 0, 3]


def test_c_and_accuracy_agree_with_scikit_learns_grid_search(tmp_path: Path) -> None:
    data = given([60, 80, 100])
    evaluation = low_shot(shares=[0.2, 1.0], draws=2)
    evaluation.check(subject(), data)
    found = evaluation.evaluate(subject(), data, tmp_path)
    assert set(found.figures) == {"top1_share0.2", "top1_share1"}
    few, all_of_them = found.details["shares"]
    assert (few["images"], all_of_them["images"]) == (48, 240)
    assert all_of_them["std"] is None
    (features, labels), (unseen, test_labels) = clouds([60, 80, 100], 1), clouds([40] * 3, 2)
    for draw in (0, 1):
        rows = stratified(labels.numpy(), 0.2, [0, draw], at_least=1)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
            {"logisticregression__C": sorted(CS)},
            cv=StratifiedKFold(5, shuffle=True, random_state=0),
        ).fit(features[rows, 1].numpy(), labels[rows])
        assert few["c"][draw] == search.best_params_["logisticregression__C"]
        expected = 100 * search.score(unseen[:, 1].numpy(), test_labels)
        assert few["top1"][draw] == pytest.approx(expected, abs=1)  # one image of 120
    assert found.figures["top1_share0.2"] == pytest.approx(np.mean(few["top1"]))
    assert few["std"] == pytest.approx(np.std(few["top1"], ddof=1))
    assert 60 < found.figures["top1_share0.2"] <= found.figures["top1_share1"] + 3
    assert not found.notes


def test_c_is_not_chosen_where_a_class_has_a_single_image(tmp_path: Path) -> None:
    data = given([20, 30, 200])
    found = low_shot(shares=[0.03]).evaluate(subject(), data, tmp_path)
    assert found.details["shares"][0]["images"] == 1 + 1 + 6
    assert found.details["shares"][0]["c"] == [1.0]
    assert found.notes == [
        "With a share of 0.03, some class has a single image: C is 1, without cross-validation."
    ]
    given_c = low_shot(shares=[0.03], cs=[0.1]).evaluate(subject(), data, tmp_path)
    assert given_c.details["shares"][0]["c"] == [0.1]
    assert not given_c.notes


def test_features_that_are_not_finite_give_nan(tmp_path: Path) -> None:
    data = given([20, 20])
    data.features("train").values[:, 1] = math.inf
    found = low_shot(shares=[0.5]).evaluate(subject(), data, tmp_path)
    assert math.isnan(found.figures["top1_share0.5"])


def test_wrong_settings_and_images_are_refused() -> None:
    same = GivenData(Splits(images([0] * 4), images([0] * 4)))
    with pytest.raises(UserError, match="same label"):
        low_shot(shares=[0.1]).check(subject(), same)
    with pytest.raises(UserError, match=r"low_shot.shares = \[\]"):
        low_shot(shares=[]).check(subject(), given([4, 4]))
