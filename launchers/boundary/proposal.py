"""Where the next runs should be: where they are expected to settle most of what is unsure."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine
from torch.special import ndtr

from launchers.boundary.classifier import Classifier

GRID, CANDIDATES = 256, 128
"""Points at which the map is judged, and of which the next runs are chosen."""
HYPERS = 6
"""Most likely length scales and heights that a choice looks at."""
NODES = ((-2.857, 0.0112574), (-1.3556, 0.2220759), (0.0, 0.5333333), (1.3556, 0.2220759), (2.857, 0.0112574))
"""Nodes and weights of the integral over a normal distribution (Gauss and Hermite)."""
SURPRISING = 0.25
"""Probability, by all other runs, below which an outcome is repeated with another seed."""
EXPLAINED = 0.8
"""Probability, by all runs, from which an outcome cannot be that surprising."""
MOST_SEEDS = 3
NEAR, APART = 0.02, 0.06
"""Distances, in lengths of an axis: of what is avoided, and least between the points of a batch."""


def first_points(dimensions: int, number: int, seed: int) -> Tensor:
    """Return the points (number, d) to begin with: spread out, the corners of the space not among them."""
    return SobolEngine(dimensions, scramble=True, seed=seed).draw(number, dtype=torch.float64)


def next_points(known: Classifier, number: int, seed: int, avoid: Tensor) -> Tensor:
    """Return the points (number, d) of the next runs.

    Each is chosen of `CANDIDATES` for the lowest expected share of the space that would then be on the wrong
    side of the boundary, given those chosen before it, which so are spread out.

    Args:
        known: what the runs so far tell.
        number: of points.
        seed: of the candidates.
        avoid: (k, d), points at which no run is possible.
    """
    engine = SobolEngine(known.points.shape[1], scramble=True, seed=seed)
    grid, candidates = engine.draw(GRID, dtype=torch.float64), engine.draw(CANDIDATES, dtype=torch.float64)
    if len(avoid):
        candidates = candidates[torch.cdist(candidates, avoid).min(1).values > NEAR]
    best = known.weights.topk(min(HYPERS, len(known.weights))).indices
    weights = known.weights[best] / known.weights[best].sum()
    on_grid, at = known.at(grid), known.at(candidates)
    mean, variance = on_grid.mean[best], on_grid.variance[best]
    both = torch.cat([candidates, grid])
    covariance = known.covariance(candidates, both)[best]  # (M, C, C + G)
    noise = _noise(at.mean[best])
    chosen: list[Tensor] = []
    for _ in range(number):
        own = covariance[:, :, : len(candidates)].diagonal(dim1=1, dim2=2).clamp_min(1e-9)  # (M, C)
        explained = covariance[:, :, len(candidates) :].square() / (own + noise)[..., None]  # (M, C, G)
        wrong = _wrong_after(mean, variance, explained, weights)
        for point in chosen:
            wrong[(candidates - point).norm(dim=1) < APART] = torch.inf
        index = int(wrong.argmin())
        chosen.append(candidates[index])
        variance = (variance - explained[:, index]).clamp_min(1e-9)
        row = covariance[:, index].clone()
        gain = row[:, : len(candidates), None] * row[:, None] / (own + noise)[:, index, None, None]
        covariance = covariance - gain
    return torch.stack(chosen)


def to_repeat(points: Tensor, trains: Tensor, most: int) -> list[int]:
    """Return the indices of at most so many runs to repeat with other seeds, the most surprising first.

    Those are runs whose outcome the others make unlikely, and places where seeds already disagree.
    """
    surprise = []
    fitted = Classifier(points, trains).at(points).probability
    for index, (point, outcome) in enumerate(zip(points, trains, strict=True)):
        same = (points - point).abs().amax(1) < 1e-9
        explained = fitted[index] if outcome else 1 - fitted[index]
        if int(same.sum()) >= MOST_SEEDS or explained > EXPLAINED:  # which spares a fit without it
            continue
        others = torch.arange(len(points)) != index
        probability = float(Classifier(points[others], trains[others]).at(point[None]).probability)
        expected = probability if outcome else 1 - probability
        if expected < SURPRISING or trains[same].unique().numel() > 1:
            surprise.append((expected, index))
    chosen: list[int] = []
    for _, index in sorted(surprise):
        if len(chosen) < most and all(
            (points[index] - points[other]).abs().amax() > 1e-9 for other in chosen
        ):
            chosen.append(index)
    return chosen


def _noise(mean: Tensor) -> Tensor:
    """Return the variance with which one outcome tells of the latent function of this mean."""
    density = torch.exp(-0.5 * mean.square()) / (2 * torch.pi) ** 0.5
    p = ndtr(mean).clamp(1e-6, 1 - 1e-6)
    return p * (1 - p) / density.square().clamp_min(1e-6)


def _wrong_after(mean: Tensor, variance: Tensor, explained: Tensor, weights: Tensor) -> Tensor:
    """Return the expected share of the grid (C,) on the wrong side after a run at each candidate."""
    left = (variance[:, None] - explained).clamp_min(1e-9).sqrt()
    total = torch.zeros(explained.shape[1], dtype=torch.float64)
    for node, weight in NODES:
        moved = mean[:, None] + node * explained.clamp_min(0).sqrt()
        total += weight * torch.einsum("m,mcg->c", weights, ndtr(-(moved / left).abs()))
    return total / mean.shape[1]
