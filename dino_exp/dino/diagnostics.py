"""What tells a healthy run from a collapsed one, measured on a logged step's own batch.

Everything is computed on the training device over the batch of all processes, and fetched in one transfer.
Entropies are in nats.
With P_t(x) the teacher's output for a crop x: h is the mean of its entropy over crops, the marginal entropy
is that of the mean output, and their gap is the mutual information between crop and prototype, which is zero
in every collapse whatever h is (section 5.3 of the paper looks at h and KL only).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from dino_exp.dino.model import Output
from dino_exp.parallel import distributed

RANK_ROWS = 512
"""Rows that the effective rank is taken over; its cost grows with their square."""


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the last dimension; 0 · log 0 is 0."""
    return torch.special.entr(probabilities).sum(-1)


def effective_rank(rows: torch.Tensor) -> torch.Tensor:
    """RankMe (Garrido et al. 2023): exp of the entropy of the normalized singular values of rows (N, D).

    Of the first `RANK_ROWS`, an equal number from each process. NaN where a row is not finite, which the
    decomposition itself would raise an error for.
    """
    rows = distributed.gathered(rows[: max(1, RANK_ROWS // distributed.count())].float())
    values = torch.linalg.svdvals(rows.nan_to_num(0, 0, 0))
    rank = entropy(values / values.sum().clamp_min(1e-12)).exp()
    return torch.where(rows.isfinite().all(), rank, torch.nan)


def deviation(rows: torch.Tensor) -> torch.Tensor:
    """Standard deviation of each column of the rows (N, D) of all processes, (D,)."""
    mean = distributed.mean(rows.mean(0))
    squares = distributed.total((rows - mean).square().sum(0))
    return (squares / (len(rows) * distributed.count() - 1)).sqrt()


def spread(rows: torch.Tensor) -> torch.Tensor:
    """Standard deviation over crops of L2-normalized rows (N, D), times √D: 1 when even, 0 when constant."""
    unit = nn.functional.normalize(rows.float(), dim=1)
    return deviation(unit).mean() * math.sqrt(rows.shape[1])


def describe(output: Output, probabilities: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of one network's outputs for the global crops.

    Args:
        output: of the network; only its first rows, as many as `probabilities` has, are looked at.
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
    student: Output, teacher: Output, student_probabilities: torch.Tensor, teacher_probabilities: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Statistics of both networks, with `teacher/` or `student/` before each name."""
    pairs = (("teacher", teacher, teacher_probabilities), ("student", student, student_probabilities))
    return {
        f"{name}/{key}": value
        for name, output, probabilities in pairs
        for key, value in describe(output, probabilities).items()
    }


def relative_distance(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> torch.Tensor:
    """‖first − second‖ / ‖first‖ over all parameters together."""
    difference = torch._foreach_sub(list(first), list(second))
    norms = [torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (difference, list(first))]
    return norms[0] / norms[1]


def fetch(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """The scalars as numbers, in one transfer from the device."""
    numbers = torch.stack([value.detach().float().reshape(()) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))
