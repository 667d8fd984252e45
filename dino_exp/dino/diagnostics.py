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
"""Number of rows from which the effective rank is computed; the cost grows with its square."""


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the entropy in nats over the last dimension; 0 · ln 0 is 0."""
    return torch.special.entr(probabilities).sum(-1)


def effective_rank(rows: torch.Tensor) -> torch.Tensor:
    """Return RankMe (Garrido et al. 2023): exp of the entropy of the normalized singular values of (N, D).

    Uses the first `RANK_ROWS` rows, an equal number from each process. NaN if a row is not finite, where the
    decomposition itself would raise an error.
    """
    rows = distributed.gathered(rows[: max(1, RANK_ROWS // distributed.count())].float())
    values = torch.linalg.svdvals(rows.nan_to_num(0, 0, 0))
    rank = entropy(values / values.sum().clamp_min(1e-12)).exp()
    return torch.where(rows.isfinite().all(), rank, torch.nan)


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
        "feature_rank": effective_rank(output.features[:n]),
        "bottleneck_rank": effective_rank(output.bottleneck[:n]),
    }


def observe(
    student: NetworkOutput,
    teacher: NetworkOutput,
    student_probabilities: torch.Tensor,
    teacher_probabilities: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Return the statistics of both networks, with `teacher/` or `student/` before each name."""
    pairs = (("teacher", teacher, teacher_probabilities), ("student", student, student_probabilities))
    return {
        f"{name}/{key}": value
        for name, output, probabilities in pairs
        for key, value in describe(output, probabilities).items()
    }


def relative_distance(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return ‖first − second‖ / ‖first‖ over all parameters together."""
    difference = torch._foreach_sub(list(first), list(second))
    norms = [torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (difference, list(first))]
    return norms[0] / norms[1]


def fetch(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """Return the scalars as Python numbers, with one transfer from the device."""
    numbers = torch.stack([value.detach().float().reshape(()) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
