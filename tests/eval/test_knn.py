import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dino_exp.data.source import ArraySource, Splits
from dino_exp.data.subset import evenly_spread
from dino_exp.errors import UserError
from dino_exp.eval.knn import KNN, knn_predict
from tests.data.sources import labels_of


def votes_by_loop(
    bank: torch.Tensor, labels: torch.Tensor, query: torch.Tensor, k: int, temperature: float, classes: int
) -> int:
    """The definition, one neighbor at a time."""
    cosines = []
    for feature, label in zip(bank.tolist(), labels.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(feature, query.tolist(), strict=True))
        norms = math.hypot(*feature) * math.hypot(*query.tolist())
        cosines.append((dot / norms, label))
    votes = [0.0] * classes
    for cosine, label in sorted(cosines, reverse=True)[:k]:
        votes[label] += math.exp(cosine / temperature)
    return votes.index(max(votes))


def features(n: int, dim: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def knn(**changes: Any) -> KNN:
    fields: dict[str, Any] = {
        "k": 5,
        "temperature": 0.07,
        "bank_size": None,
        "query_size": None,
        "batch_size": 8,
        "crop_ratio": 1.0,
    }
    return KNN(**(fields | changes))


def test_agrees_with_the_definition_for_several_k_and_uneven_blocks() -> None:
    bank, labels, queries = features(60), torch.arange(60) % 7, features(23, seed=1)
    ks = [1, 10, 60]
    predicted = knn_predict(bank, labels, queries, k=ks, temperature=0.5, classes=7, block=9)
    expected = [[votes_by_loop(bank, labels, query, k, 0.5, 7) for query in queries] for k in ks]
    assert predicted.tolist() == expected
    assert expected[0] != expected[1] != expected[2]  # the three k are different questions
    alone = knn_predict(bank, labels, queries, k=10, temperature=0.5, classes=7)
    assert alone.tolist() == expected[1]


def test_one_near_neighbor_outvotes_two_far_ones_only_at_low_temperature() -> None:
    # cosines with (1, 0): 1.0 for class 0; 0.8 and 0.6 for class 1.
    # T = 0.07: e^0 against e^(-0.2/0.07) + e^(-0.4/0.07) = 0.061; T = 1: 1 against 0.819 + 0.670.
    bank, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, -0.8]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[3.0, 0.0]])
    for temperature, winner in ((0.07, 0), (1.0, 1)):
        got = knn_predict(bank, labels, query, k=3, temperature=temperature, classes=2)
        assert got.tolist() == [winner]


def test_length_of_features_and_a_tiny_temperature_change_nothing_they_should_not() -> None:
    bank, labels, queries = features(40), torch.arange(40) % 3, features(17, seed=2)

    def predict(scale_bank: float, scale_queries: float, temperature: float) -> list[int]:
        return knn_predict(
            bank * scale_bank, labels, queries * scale_queries, k=9, temperature=temperature, classes=3
        ).tolist()

    assert predict(1, 1, 0.07) == predict(1e3, 1e-3, 0.07)
    # exp(1 / 0.001) is not a float32; in the limit the nearest neighbor decides.
    nearest = knn_predict(bank, labels, queries, k=1, temperature=1, classes=3).tolist()
    assert predict(1, 1, 0.001) == nearest


def test_k_is_cut_to_the_bank_and_few_queries_of_many_classes_work() -> None:
    bank, labels = torch.eye(3), torch.tensor([5, 999, 7])
    predicted = knn_predict(bank, labels, torch.eye(3)[1:2], k=200, temperature=0.07, classes=1000)
    assert predicted.tolist() == [999]
    assert knn_predict(bank, labels, torch.empty(0, 3), k=2, temperature=1, classes=1000).shape == (0,)


def test_accuracy_is_a_percentage_and_nan_features_are_no_score() -> None:
    bank, labels = torch.eye(4), torch.arange(4)
    assert knn(k=1).accuracy(bank, labels, torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75.0
    assert math.isnan(knn().accuracy(bank * math.nan, labels, bank, labels))


def test_spread_covers_the_set_and_does_not_alias_with_alternating_classes() -> None:
    assert evenly_spread(7, None) == evenly_spread(7, 7) == evenly_spread(7, 9) == list(range(7))
    chosen = evenly_spread(12_000, 1_200)
    assert len(set(chosen)) == 1_200
    assert chosen == sorted(chosen) == evenly_spread(12_000, 1_200)
    assert max(np.diff([-1, *chosen, 12_000])) < 20
    counts = np.bincount([index % 10 for index in chosen])  # a step of 10 would see one class alone
    assert counts.min() > 110
    assert counts.max() < 130


def two_classes(n: int, seed: int) -> ArraySource:
    """Dark images and bright ones, told apart by their first channel's mean."""
    generator = torch.Generator().manual_seed(seed)
    labels = np.arange(n) % 2
    images = torch.randint(0, 100, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[1::2] += 120
    return ArraySource("two", images, labels, ["dark", "bright"], 3)


class Contrast(nn.Module):
    """(mean, 1): images below the normalization's mean point one way, those above it another."""

    feature_dim = 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images.mean(dim=(1, 2, 3)), torch.full((len(images),), 0.1)], dim=1)


def test_evaluate_goes_from_images_to_percent() -> None:
    train, test = two_classes(40, 0), two_classes(16, 1)
    splits = Splits(train, test)
    settings: dict[str, Any] = {"image_size": 8, "mean": [0.45] * 3, "std": [0.25] * 3, "device": "cpu"}
    assert knn(bank_size=20, query_size=9).evaluate(Contrast(), splits, **settings) == 100.0
    assert knn().evaluate_pixels(splits, image_size=8) == 100.0
    test.labels = 1 - labels_of(test)
    assert knn().evaluate(Contrast(), splits, **settings) == 0.0


@pytest.mark.parametrize("problem", ["no test", "no labels", "other classes"])
def test_what_cannot_be_evaluated_is_said(problem: str) -> None:
    train, test = two_classes(40, 0), two_classes(16, 1)
    splits = Splits(train, None if problem == "no test" else test)
    if problem == "no labels":
        train.labels = None
    if problem == "other classes":
        test.classes = ["dark", "dim"]
    expected = {
        "no test": "held-out",
        "no labels": "training images have no labels",
        "other classes": "bright, dim",
    }
    assert knn().applies(splits) == (problem == "other classes")
    with pytest.raises(UserError, match=expected[problem]):
        knn().evaluate_pixels(splits, image_size=8)
