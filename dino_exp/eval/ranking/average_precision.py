"""Average precision and precision at k as retrieval benchmarks count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# scikit-learn's average_precision_score and torchmetrics' RetrievalMAP sum precisions at the positives, in
# steps. The benchmarks take the trapezoid rule, ignore junk, and cut precision at k at the last positive.

SIMILARITIES = 2**24
"""Similarities in memory at once: 64 MiB."""


@dataclass(frozen=True)
class Scores:
    """Means over the queries that have positives, in 0–1."""

    mean_average_precision: float
    precision_at: dict[int, float]
    queries: int
    """The number of these queries."""


def average_precision(ranks: Sequence[int] | np.ndarray, positives: int) -> float:
    """Return the area under precision over recall, by trapezoids (Philbin et al. 2007; INRIA Holidays).

    ranks: ranks of the positives that were found, from 0, ascending. positives: the number of all positives;
    one that was not found adds nothing.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * positives))


def ranks_without_junk(order: np.ndarray, positives: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Return the positives' ranks in `order` (N,), database rows best first, once junk is removed."""
    is_junk = np.isin(order, junk)
    ranks = np.flatnonzero(np.isin(order, positives))
    return ranks - np.cumsum(is_junk)[ranks] + is_junk[ranks]


def precision_at(ranks: np.ndarray, k: int) -> float:
    """Return the share of positives among the first k, or up to the last positive if that comes earlier."""
    k = min(int(ranks.max()) + 1, k)
    return float((ranks < k).sum() / k)


def scores(
    orders: np.ndarray, positives: Sequence[np.ndarray], junk: Sequence[np.ndarray], ks: Sequence[int]
) -> Scores:
    """Return means over queries; row i of `orders` (M, N) ranks the entire database for query i, best first.

    positives, junk: database rows, by query. Queries without positives are skipped; if no query has any, the
    means are NaN.
    """
    precisions, at_k = [], []
    for order, good, ignored in zip(orders, positives, junk, strict=True):
        if len(good):
            ranks = ranks_without_junk(order, good, ignored)
            precisions.append(average_precision(ranks, len(good)))
            at_k.append([precision_at(ranks, k) for k in ks])
    if not precisions:
        return Scores(float("nan"), dict.fromkeys(ks, float("nan")), 0)
    means = np.mean(at_k, axis=0).tolist()
    return Scores(float(np.mean(precisions)), dict(zip(ks, means, strict=True)), len(precisions))


def best_first(queries: Tensor, database: Tensor, count: int | None = None) -> np.ndarray:
    """Return database rows by cosine with each query, int64 (M, N) or the first `count` of each; ties by row.

    queries (M, D) and database (N, D) are float32. Few queries are compared at once, so that little more
    memory is needed than for the result.
    """
    keys = F.normalize(database, dim=1).t()
    blocks = F.normalize(queries, dim=1).split(max(1, SIMILARITIES // len(database)))
    rows = [(block @ keys).argsort(dim=1, descending=True, stable=True)[:, :count] for block in blocks]
    return torch.cat(rows).numpy()
