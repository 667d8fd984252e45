"""Diagnostics that tell a healthy run from a collapsed one, from the batch of a logged step.

Everything is computed on the training device over the global batch, and fetched in one transfer. Entropies
are in nats. With P(x) a network's output for a crop x::

    h = mean over x of H(P(x))          entropy of an output; between 0 (one-hot) and ln K (uniform)
    marginal entropy = H(mean of P(x))  how evenly the prototypes are used
    mutual information of crop and prototype = marginal entropy − h

The mutual information is zero in every collapse, whatever h is; section 5.3 of the paper looks at h and KL.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from dino_exp.dino.model import NetworkOutput
from dino_exp.parallel import distributed

RANK_ROWS = 512
"""Number of rows from which the effective rank is computed in training; the cost grows with its square."""


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats over the last dimension; 0 · ln 0 is 0."""
    return torch.special.entr(probabilities).sum(-1)


def effective_ranks(*networks: torch.Tensor, most: int = RANK_ROWS) -> tuple[torch.Tensor, ...]:
    """Return RankMe (Garrido et al. 2023) of the rows (N, D) of each network, by one decomposition for all.

    It is exp of the entropy of the normalized singular values (eq. 1). These are the roots of the
    eigenvalues of the smaller matrix of inner products, in float64 exact to some 1e-8 of the largest. Uses
    the first `most` rows, an equal number from each process. NaN if a row is not finite, where the
    decomposition would raise.
    """
    share = max(1, most // distributed.count())
    rows = torch.stack([each[:share] for each in networks], dim=1).float()
    rows = distributed.gathered(rows).transpose(0, 1).double()
    finite = rows.nan_to_num(0, 0, 0)
    products = finite @ finite.mT if rows.shape[1] < rows.shape[2] else finite.mT @ finite
    values = torch.linalg.eigvalsh(products).clamp_min(0).sqrt()
    ranks = entropy(values / values.sum(-1, keepdim=True).clamp_min(1e-12)).exp()
    return torch.where(rows.isfinite().flatten(1).all(1), ranks, torch.nan).unbind()


def deviation(rows: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of each column of the rows (N, D) of all processes, (D,)."""
    mean = distributed.mean(rows.mean(0))
    squares = distributed.total((rows - mean).square().sum(0))
    return (squares / (len(rows) * distributed.count() - 1)).sqrt()


def spread(rows: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of L2-normalized rows (N, D), times √D: 1 if even, 0 if constant."""
    unit = nn.functional.normalize(rows.float(), dim=1)
    return deviation(unit).mean() * math.sqrt(rows.shape[1])


def describe(output: NetworkOutput, probabilities: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return statistics of one network's outputs for the global crops.

    Args:
        output: the network's; only its first rows are used, as many as `probabilities` has.
        probabilities: (2·B, K), its softmax after centering and temperature.
    """
    n, k = probabilities.shape
    h = distributed.mean(entropy(probabilities).mean())
    marginal = entropy(distributed.mean(probabilities.mean(0)))
    used = distributed.mean(torch.bincount(probabilities.argmax(1), minlength=k).float() / n)
    return {
        "entropy": h,
        "entropy_share": h / math.log(k),
        "marginal_entropy": marginal,
        "mutual_information": marginal - h,
        "mutual_information_share": (marginal - h) / math.log(k),
        "prototypes_used": (used > 0).float().mean(),
        "prototypes_perplexity": entropy(used).exp(),
        "logit_spread": deviation(output.logits[:n].float()).mean(),
        "feature_std": spread(output.features[:n]),
    }


def observe(
    student: NetworkOutput,
    teacher: NetworkOutput,
    student_probabilities: torch.Tensor,
    teacher_probabilities: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return the statistics of both networks, with `teacher/` or `student/` before each name."""
    n = len(teacher_probabilities)
    features = effective_ranks(teacher.features[:n], student.features[:n])
    bottlenecks = effective_ranks(teacher.bottleneck[:n], student.bottleneck[:n])
    described = (describe(teacher, teacher_probabilities), describe(student, student_probabilities))
    seen: dict[str, torch.Tensor] = {}
    for number, name in enumerate(("teacher", "student")):
        ranks = {"feature_rank": features[number], "bottleneck_rank": bottlenecks[number]}
        seen |= {f"{name}/{key}": value for key, value in (described[number] | ranks).items()}
    return seen


def relative_distance(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ‖first − second‖ / ‖first‖ over all parameters together."""
    difference = torch._foreach_sub(list(first), list(second))
    norms = [torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (difference, list(first))]
    return norms[0] / norms[1]


def fetch(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the scalars as Python numbers, with one transfer from the device."""
    numbers = torch.stack([value.detach().float().reshape(()) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
