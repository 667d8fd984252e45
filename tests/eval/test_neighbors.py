"""Votes of nearest neighbors against their definition."""

import math
from typing import Any

import numpy as np
import torch

from dino_exp.data.subset import evenly_spread
from dino_exp.eval.neighbors import predict


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


def test_agrees_with_the_definition_for_several_k_and_uneven_blocks() -> None:
    bank, labels, queries = features(60), torch.arange(60) % 7, features(23, seed=1)
    ks = [1, 10, 60]
    predicted = predict(bank, labels, queries, ks=ks, temperature=0.5, classes=7, block=9)[..., 0]
    expected = [[votes_by_loop(bank, labels, query, k, 0.5, 7) for query in queries] for k in ks]
    assert predicted.tolist() == expected
    assert expected[0] != expected[1] != expected[2]  # the three k are different questions
    alone = predict(bank, labels, queries, ks=[10], temperature=0.5, classes=7)
    assert alone[0, :, 0].tolist() == expected[1]


def test_one_near_neighbor_outvotes_two_far_ones_only_at_low_temperature() -> None:
    # cosines with (1, 0): 1.0 for class 0; 0.8 and 0.6 for class 1.
    # T = 0.07: e^0 against e^(-0.2/0.07) + e^(-0.4/0.07) = 0.061; T = 1: 1 against 0.819 + 0.670.
    bank, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, -0.8]]), torch.tensor([0, 1, 1])
    query = torch.tensor([[3.0, 0.0]])
    for temperature, winner in ((0.07, 0), (1.0, 1)):
        got = predict(bank, labels, query, ks=[3], temperature=temperature, classes=2)
        assert got.tolist() == [[[winner]]]


def test_length_of_features_and_a_tiny_temperature_change_nothing_they_should_not() -> None:
    bank, labels, queries = features(40), torch.arange(40) % 3, features(17, seed=2)

    def predicted(scale_bank: float, scale_queries: float, temperature: float, k: int = 9) -> list[Any]:
        scaled = bank * scale_bank, labels, queries * scale_queries
        return predict(*scaled, ks=[k], temperature=temperature, classes=3).tolist()

    assert predicted(1, 1, 0.07) == predicted(1e3, 1e-3, 0.07)
    # exp(1 / 0.001) is not a float32; in the limit the nearest neighbor decides.
    assert predicted(1, 1, 0.001) == predicted(1, 1, 1, k=1)


def test_k_is_cut_to_the_bank_and_few_queries_of_many_classes_work() -> None:
    bank, labels = torch.eye(3), torch.tensor([5, 999, 7])
    predicted = predict(bank, labels, torch.eye(3)[1:2], ks=[200], temperature=0.07, classes=1000)
    assert predicted.tolist() == [[[999]]]
    none = predict(bank, labels, torch.empty(0, 3), ks=[2], temperature=1, classes=1000)
    assert none.shape == (1, 0, 1)


def test_of_equal_votes_the_lowest_class_is_first_and_classes_without_a_vote_are_no_guess() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    labels, query = torch.tensor([6, 2, 4, 0]), torch.tensor([[1.0, 0.0]])
    (found,) = predict(bank, labels, query, ks=[3], temperature=0.07, classes=8, top=5)[0].tolist()
    assert found[0] == 2
    assert sorted(found[1:]) == [-1, -1, 4, 6]


def test_spread_covers_the_set_and_does_not_alias_with_alternating_classes() -> None:
    assert evenly_spread(7, None) == evenly_spread(7, 7) == evenly_spread(7, 9) == list(range(7))
    chosen = evenly_spread(12_000, 1_200)
    assert len(set(chosen)) == 1_200
    assert chosen == sorted(chosen) == evenly_spread(12_000, 1_200)
    assert max(np.diff([-1, *chosen, 12_000])) < 20
    counts = np.bincount([index % 10 for index in chosen])  # a step of 10 would see one class alone
    assert counts.min() > 110
    assert counts.max() < 130
