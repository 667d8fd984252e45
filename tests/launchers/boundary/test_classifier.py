"""The classifier against integrals, and whether its probabilities are right about known boundaries."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.special import ndtr

from launchers.boundary import classifier as classifier_module
from launchers.boundary.classifier import Classifier
from launchers.boundary.proposal import next_points, to_repeat


def points(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_posterior_of_two_outcomes_is_that_of_the_integral(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier_module, "LENGTHS", (0.5,))
    monkeypatch.setattr(classifier_module, "HEIGHTS", (2.0,))
    at, outcomes = points((0.2,), (0.6,)), torch.tensor([True, False])
    latent = Classifier(at, outcomes).at(points((0.2,), (0.6,)))
    correlation = math.exp(-0.5 * (0.4 / 0.5) ** 2)
    covariance = 4.0 * torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    axis = torch.linspace(-14, 14, 701, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    prior = -0.5 * (grid @ torch.linalg.inv(covariance) * grid).sum(1)
    weights = prior.exp() * ndtr(grid[:, 0]) * ndtr(-grid[:, 1])
    weights /= weights.sum()
    mean = weights @ grid
    assert torch.allclose(latent.mean[0], mean, atol=0.01)
    assert torch.allclose(latent.variance[0], weights @ (grid - mean).square(), rtol=0.02)
    exact = torch.stack([weights @ ndtr(grid[:, 0]), weights @ ndtr(grid[:, 1])])
    assert torch.allclose(latent.probability, exact, atol=0.01)


def curve(at: Tensor) -> Tensor:
    """Return the distance to a curved boundary; training is above 0."""
    return 0.6 - 0.3 * at[:, 1].square() - at[:, 0]


def test_probabilities_are_right_as_often_as_they_say() -> None:
    fine = torch.rand(2000, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    truth, right, sure, wrong = curve(fine) > 0, [], [], []
    for seed in range(6):
        numbers = torch.Generator().manual_seed(seed)
        at = torch.rand(20, 2, generator=numbers, dtype=torch.float64)
        outcomes = curve(at) + 0.03 * torch.randn(20, generator=numbers, dtype=torch.float64) > 0
        side = Classifier(at, outcomes).at(fine).side
        agrees, certain = (side > 0.5) == truth, (side - 0.5).abs() > 0.45
        right.append(agrees[certain].double().mean())
        sure.append(certain.double().mean())
        wrong.append((~agrees).double().mean())
    assert torch.stack(right).mean() > 0.95
    assert torch.stack(sure).mean() > 0.5  # and it does commit itself
    assert torch.stack(wrong).mean() < 0.1


def test_chosen_points_find_the_boundary_sooner_than_random_ones_and_are_spread_out() -> None:
    fine = torch.rand(2000, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    start = torch.rand(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def wrong(at: Tensor) -> float:
        return float(
            ((Classifier(at, curve(at) > 0).at(fine).side > 0.5) != (curve(fine) > 0)).double().mean()
        )

    chosen = start
    for _ in range(3):
        new = next_points(Classifier(chosen, curve(chosen) > 0), 4, len(chosen), avoid=start[:0])
        assert torch.pdist(new).min() > 0.05
        chosen = torch.cat([chosen, new])
    others = torch.rand(12, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert wrong(chosen) < 0.03
    assert wrong(chosen) < 0.7 * wrong(torch.cat([start, others]))


def test_no_point_is_chosen_where_no_run_is_possible() -> None:
    at = points((0.1, 0.1), (0.9, 0.9))
    known = Classifier(at, torch.tensor([True, False]))
    blocked = next_points(known, 1, 0, avoid=at[:0])
    (other,) = next_points(known, 1, 0, avoid=blocked)
    assert (other - blocked).abs().max() > 0.02


def test_what_the_others_contradict_is_repeated_up_to_three_seeds() -> None:
    around = [(x, y) for x in (0.1, 0.15, 0.2) for y in (0.4, 0.5, 0.6)] + [(0.9, 0.5), (0.8, 0.4)]
    at, outcomes = points(*around), torch.tensor([True] * 9 + [False] * 2)
    assert to_repeat(at, outcomes, 4) == []
    outcomes[4] = False
    assert to_repeat(at, outcomes, 4)[0] == 4
    again = torch.cat([at, at[4:5]])
    assert to_repeat(again, torch.cat([outcomes, torch.tensor([True])]), 4)[0] in (4, 11)
    third = torch.cat([again, at[4:5]])
    assert not {4, 11, 12} & {*to_repeat(third, torch.cat([outcomes, torch.tensor([True, True])]), 9)}
