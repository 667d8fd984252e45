"""A probabilistic classifier of points by a binary outcome: a Gaussian process with expectation propagation.

Rasmussen and Williams, Gaussian Processes for Machine Learning, section 3.6, with a probit likelihood and all
sites updated at once. The length scales and the height of the function are not chosen but averaged over, each
weighted by its evidence, because a dozen outcomes do not determine them. Laplace's approximation, which
scikit-learn has, places the boundary as well, but knows far too little about it (`benchmarks/boundary.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.special import log_ndtr, ndtr

LENGTHS = (0.15, 0.3, 0.6, 1.2, 2.4)
"""Length scales, in lengths of an axis."""
HEIGHTS = (4.0, 10.0, 25.0)
"""Standard deviations of the latent function; a high one makes a sharp boundary."""
USUAL_LENGTH, SPREAD = 0.6, 0.7
"""Median length scale before any outcome, and the standard deviation of its logarithm."""
ROUNDS, DAMPING = 30, 0.8
"""Updates of all sites, and the share of each that is made."""
SMALLEST = 1e-10
KEPT = 0.02
"""Smallest weight, relative to the largest, of what is averaged over."""
JITTER = 1e-6


@dataclass(frozen=True)
class Latent:
    """The latent function at G points, for each of M pairs of lengths and height; training is above 0."""

    mean: Tensor  # (M, G)
    variance: Tensor  # (M, G)
    weights: Tensor  # (M,), which add up to 1

    @property
    def probability(self) -> Tensor:
        """The probability (G,) that a run at each point trains: the spread of the seeds is in it."""
        return self.weights @ ndtr(self.mean / (1 + self.variance).sqrt())

    @property
    def side(self) -> Tensor:
        """The probability (G,) that each point is on the side where most seeds train."""
        return self.weights @ ndtr(self.mean / self.variance.sqrt())


class Classifier:
    """What is known from outcomes.

    Args:
        points: (n, d), coordinates from 0 to 1 on each axis.
        trains: (n,), whether the run at each point trains.
    """

    def __init__(self, points: Tensor, trains: Tensor) -> None:
        self.points, sign = points, 2.0 * trains.double() - 1.0
        grid = list(product(*[LENGTHS] * points.shape[1], HEIGHTS))
        scales = torch.tensor(grid, dtype=torch.float64)
        self.lengths, self.heights = scales[:, :-1], scales[:, -1]
        prior = -0.5 * ((self.lengths.log() - math.log(USUAL_LENGTH)) / SPREAD).square().sum(1)
        evidence, self.gradient, self.root, self.factor = self._fit(sign)
        evidence = evidence + prior
        weights = torch.softmax(evidence, 0)
        kept = weights >= KEPT * weights.max()
        self.weights = weights[kept] / weights[kept].sum()
        self.lengths, self.heights = self.lengths[kept], self.heights[kept]
        self.gradient, self.root, self.factor = self.gradient[kept], self.root[kept], self.factor[kept]

    def _fit(self, sign: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Find the sites for each pair of lengths and height.

        Returns:
            The logarithm of their evidence (M,); the gradient (M, n), root of the precision (M, n) and factor
            (M, n, n) from which means and variances follow.
        """
        kernel = self._kernel(self.points, self.points) + JITTER * torch.eye(len(sign), dtype=torch.float64)
        precision = torch.zeros(len(kernel), len(sign), dtype=torch.float64)  # of the sites
        shift = precision.clone()  # precision times mean
        for number in range(ROUNDS):
            root = precision.sqrt()
            factor = _factor(root, kernel)
            seen = torch.linalg.solve_triangular(factor, root[..., None] * kernel, upper=False)
            covariance = kernel - seen.transpose(1, 2) @ seen
            variance, mean = (
                covariance.diagonal(dim1=1, dim2=2).clamp_min(SMALLEST),
                _times(covariance, shift),
            )
            # what all others say of each point, then its own outcome
            others = (1 / variance - precision).clamp_min(SMALLEST)
            others_mean = (mean / variance - shift) / others
            spread = (1 + 1 / others).sqrt()
            z = sign * others_mean / spread
            if number == ROUNDS - 1:
                break
            ratio = torch.exp(-0.5 * z.square() - 0.5 * math.log(2 * math.pi) - log_ndtr(z))
            matched_mean = others_mean + sign * ratio / (others * spread)
            narrower = (1 / (others * spread)).square() * ratio * (z + ratio)
            matched = 1 / (1 / others - narrower).clamp_min(SMALLEST)
            wanted = (matched - others).clamp_min(SMALLEST)
            precision = precision + DAMPING * (wanted - precision)
            shift = shift + DAMPING * (matched * matched_mean - others * others_mean - shift)
        solved = torch.cholesky_solve((root * _times(kernel, shift))[..., None], factor)[..., 0]
        gradient = shift - root * solved
        both = precision + others
        terms = log_ndtr(z) + 0.5 * torch.log1p(precision / others) + 0.5 * shift * mean
        terms += 0.5 * others_mean * others / both * (precision * others_mean - 2 * shift)
        terms -= 0.5 * shift.square() / both + factor.diagonal(dim1=1, dim2=2).log()
        return terms.sum(1), gradient, root, factor

    def _kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the covariances (M, len(a), len(b)) before any outcome."""
        apart = (a[:, None] - b[None]).square()  # (a, b, d)
        scaled = torch.einsum("pqd,md->mpq", apart, self.lengths**-2)
        return self.heights[:, None, None].square() * torch.exp(-0.5 * scaled)

    def _seen(self, points: Tensor) -> Tensor:
        """Return the root (M, n, G) of what the outcomes explain of the covariance of points."""
        cross = self.root[..., None] * self._kernel(self.points, points)
        return torch.linalg.solve_triangular(self.factor, cross, upper=False)

    def at(self, points: Tensor) -> Latent:
        """Return what is known of points (G, d)."""
        mean = torch.einsum("mn,mng->mg", self.gradient, self._kernel(self.points, points))
        variance = self.heights.square()[:, None] - self._seen(points).square().sum(1)
        return Latent(mean, variance.clamp_min(JITTER), self.weights)

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the covariances (M, len(a), len(b)) after the outcomes."""
        return self._kernel(a, b) - self._seen(a).transpose(1, 2) @ self._seen(b)


def _factor(root: Tensor, kernel: Tensor) -> Tensor:
    eye = torch.eye(kernel.shape[-1], dtype=torch.float64)
    return torch.linalg.cholesky(eye + root[:, :, None] * kernel * root[:, None, :])


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]
