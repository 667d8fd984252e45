"""What a ranked list is worth: average precision and precision at k as retrieval benchmarks count them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

# scikit-learn's average_precision_score and torchmetrics' RetrievalMAP sum precisions at the positives, in
# steps. The benchmarks take the trapezoid rule, pass over junk, and end a short list's precision at k early.

SIMILARITIES = 2**24
"""How many are held at once: 64 MiB."""


@dataclass(frozen=True)
class Scores:
    """Means over the queries that have positives, as shares of 1."""

    mean_average_precision: float
    precision_at: dict[int, float]
    queries: int
    """How many those are."""


def average_precision(ranks: Sequence[int] | np.ndarray, positives: int) -> float:
    """Area under precision over recall by the trapezoid rule (Philbin et al. 2007; INRIA Holidays).

    ranks: of the positives that were found, from 0, ascending. positives: how many there are in all; one that
    was not found adds nothing.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * positives))


def ranks_without_junk(order: np.ndarray, positives: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Ranks of the positives in `order` (N,), database rows best first, as if the junk were not in it."""
    is_junk = np.isin(order, junk)
    places = np.flatnonzero(np.isin(order, positives))
    return places - np.cumsum(is_junk)[places] + is_junk[places]


def precision_at(ranks: np.ndarray, k: int) -> float:
    """Share of positives among the first k, or up to the last positive where that comes sooner."""
    k = min(int(ranks.max()) + 1, k)
    return float((ranks < k).sum() / k)


def scores(
    orders: np.ndarray, positives: Sequence[np.ndarray], junk: Sequence[np.ndarray], ks: Sequence[int]
) -> Scores:
    """Means over queries, of whom row i of `orders` (M, N) ranks the whole database, best first.

    positives, junk: database rows of each query. Queries without positives are left out; where none has any,
    the means are NaN.
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
    """Database rows by cosine with each query, int64 (M, N) or the first `count` of each; ties by row.

    queries (M, D) and database (N, D) float32. Few queries are compared at once, so that it takes little more
    memory than its result.
    """
    keys = F.normalize(database, dim=1).t()
    rows = [
        similarity.argsort(dim=1, descending=True, stable=True)[:, :count].numpy()
        for similarity in _similarities(F.normalize(queries, dim=1), keys)
    ]
    return np.concatenate(rows)


def _similarities(queries: Tensor, keys: Tensor) -> Iterator[Tensor]:
    for block in queries.split(max(1, SIMILARITIES // keys.shape[1])):
        yield block @ keys
