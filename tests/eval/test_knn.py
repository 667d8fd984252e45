"""The evaluation `knn` against scikit-learn, and the blockwise search against one of all at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dino_exp.config.evaluation_schema import KnnConfig
from dino_exp.data.source import Splits
from dino_exp.errors import UserError
from dino_exp.eval.neighbors import NearestNeighbors, nearest
from tests.data.sources import held_out, labels_of
from tests.eval.subjects import GivenData, block_features, images, labeled_data, subject


def noisy_classes(count: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (count, 12) that predict the class about half of the time."""
    centers = torch.randn(classes, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % classes
    noise = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    return centers[labels] + 1.5 * noise, labels


def knn(*k: int) -> NearestNeighbors:
    return NearestNeighbors(KnnConfig(k=list(k) or [1, 10, 150]))


def given(classes: int = 8) -> GivenData:
    return labeled_data(*noisy_classes(300, classes, seed=1), *noisy_classes(97, classes, seed=2))


def test_agrees_with_scikit_learns_weighted_neighbors(tmp_path: Path) -> None:
    data = given()
    found = knn().evaluate(subject(), data, tmp_path)
    bank, queries = data.given["train"].final.numpy(), data.given["test"].final.numpy()
    expected = {}
    for k in (1, 10, 150):
        theirs = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine")
        theirs.fit(bank, labels_of(data.splits.train))
        right = theirs.predict(queries) == labels_of(held_out(data.splits))
        expected[f"top1_k{k}"] = 100 * right.mean()
        shares = theirs.predict_proba(queries)
        of_right = shares[np.arange(len(queries)), labels_of(held_out(data.splits))]
        five = (of_right > 0) & ((shares > of_right[:, None]).sum(axis=1) < 5)
        expected[f"top5_k{k}"] = 100 * five.mean()
    del expected["top5_k1"]  # as in eval_knn.py: one neighbor makes no five guesses
    assert found.figures == pytest.approx(expected)
    assert 30 < found.figures["top1_k10"] < 95  # neither trivial nor chance
    assert found.details == {"bank": 300, "queries": 97, "classes": 8}


@pytest.mark.parametrize("in_order", [False, True])
def test_block_by_block_finds_the_same_neighbors(in_order: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    bank, queries = torch.randn(500, 6, generator=generator), torch.randn(41, 6, generator=generator)
    if in_order:  # each block is nearer to the first query than all before it
        bank = bank[(torch.nn.functional.normalize(bank) @ queries[0]).argsort()]
    whole = nearest(bank, queries, 33, bank_block=500)
    assert torch.equal(whole[1][0].unique(), whole[1][0].sort().values)
    for bank_block, query_block in ((7, 10), (50, 41), (499, 3)):
        cosines, where = nearest(bank, queries, 33, bank_block=bank_block, query_block=query_block)
        torch.testing.assert_close(cosines, whole[0], rtol=0, atol=1e-6)
        assert torch.equal(where, whole[1])
    cosines, where = nearest(bank[:5], queries, 33, bank_block=2)
    assert cosines.shape == (41, 5)
    assert where.sort(dim=1).values.tolist() == [[0, 1, 2, 3, 4]] * 41


def test_more_neighbors_than_images_are_noted_and_few_classes_have_no_top5(tmp_path: Path) -> None:
    data = given(classes=2)
    found = knn(5, 400).evaluate(subject(), data, tmp_path)
    assert list(found.figures) == ["top1_k5", "top1_k400"]
    assert found.notes == ["k = 400 is more than the 300 images in the bank; all of them vote."]


def test_accuracy_is_a_percentage(tmp_path: Path) -> None:
    bank, labels = torch.eye(4), np.arange(4)
    given = {"train": block_features(bank), "test": block_features(bank)}
    data = GivenData(Splits(images(labels), images([0, 1, 2, 0], classes=list("0123"))), given)
    assert knn(1).evaluate(subject(), data, tmp_path).figures["top1_k1"] == 75.0


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    data = given()
    data.given["test"].values[3, 0, 1] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        knn().evaluate(subject(), data, tmp_path)
    without = GivenData(Splits(images([0, 1]), None))
    with pytest.raises(UserError, match=r"data\.val_root"):
        knn().check(subject(), without)
    train, test = images([0, 1], classes=["cat", "dog"]), images([0, 1], classes=["cat", "cow"])
    with pytest.raises(UserError, match="cow, dog"):
        knn().check(subject(), GivenData(Splits(train, test)))
    train.labels = None
    with pytest.raises(UserError, match="training images have no labels"):
        knn().check(subject(), GivenData(Splits(train, test)))
