"""Weighted k-nearest-neighbor classification (Wu et al. 2018; DINO section 4.1 and appendix F.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_exp.config.evaluation_schema import KnnConfig
from dino_exp.eval.subject import DivergedError, Findings, LabeledData, Subject, labeled
from dino_exp.parallel import distributed

BANK_BLOCK, QUERY_BLOCK = 16384, 1024
"""Similarities of a block, 64 MiB, stay near the cores; with the neighbors so far that is all the memory."""
MOST_VOTES = 2**24
"""Votes (queries x classes) counted at once."""


@torch.no_grad()
def nearest(
    bank: Tensor, queries: Tensor, k: int, *, query_block: int = QUERY_BLOCK, bank_block: int = BANK_BLOCK
) -> tuple[Tensor, Tensor]:
    """Return cosines and bank rows of the k nearest to each query, nearest first: two tensors (M, min(k, N)).

    bank (N, D), perhaps of a memory-mapped file, which is read once and in order; queries (M, D), on whose
    device the work is done. Features need not be normalized.

    The bank passes block by block. Of each block only those that are nearer than a query's k-th so far join
    its list: soon few, so that the matrix product is most of the work.
    """
    k = min(k, len(bank))
    queries = F.normalize(queries.float(), dim=1)
    near = torch.full((len(queries), k), -torch.inf, device=queries.device)
    where = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)
    for bank_start in range(0, len(bank), bank_block):
        keys = F.normalize(bank[bank_start : bank_start + bank_block].to(queries.device).float(), dim=1).t()
        for start in range(0, len(queries), query_block):
            rows = slice(start, start + query_block)
            near[rows], where[rows] = _joined(near[rows], where[rows], queries[rows] @ keys, bank_start)
    return near, where


def _joined(near: Tensor, where: Tensor, cosines: Tensor, bank_start: int) -> tuple[Tensor, Tensor]:
    """Return the k best of those so far (Q, k) and of a block's (Q, B), which begins at row `bank_start`."""
    (rows, k), block = near.shape, cosines.shape[1]
    if bank_start == 0 and block >= k:
        best, numbers = cosines.topk(k, dim=1)
        return best, numbers
    found = (cosines > near[:, -1:]).flatten().nonzero().squeeze(1)
    row = found // block
    counts = torch.bincount(row, minlength=rows)
    column = k + torch.arange(len(found), device=found.device) - (counts.cumsum(0) - counts)[row]
    width = k + (int(counts.max()) if len(found) else 0)
    candidates = near.new_full((rows, width), -torch.inf)
    numbers = where.new_zeros((rows, width))
    candidates[:, :k], numbers[:, :k] = near, where
    candidates[row, column] = cosines.flatten()[found]
    numbers[row, column] = found - row * block + bank_start
    best, chosen = candidates.topk(k, dim=1)
    return best, numbers.gather(1, chosen)


@torch.no_grad()
def votes(cosines: Tensor, labels: Tensor, *, temperature: float, classes: int) -> Tensor:
    """Return the votes for each class (M, classes) of neighbors' labels (M, k), of weight exp(cosine / T).

    A query's weights are divided by its largest, which changes no comparison and cannot overflow at small T;
    the nearest neighbor comes first.
    """
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    return torch.zeros(len(cosines), classes, device=cosines.device).scatter_add_(1, labels, weights)


@torch.no_grad()
def predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    ks: Sequence[int],
    temperature: float,
    classes: int,
    top: int = 1,
    block: int | None = None,
) -> Tensor:
    """Return the `top` classes of each query by the votes of its k nearest bank features, best first.

    bank (N, D), bank_labels (N,) int64 in [0, classes), queries (M, D), on whose device the work is done;
    each neighbor's vote has the weight exp(cosine / T). Features need not be normalized. A k above N is cut
    to N. `block` queries are compared at once.

    Returns:
        (len(ks), M, top) int64; -1 where fewer classes have a vote. Of equal ones the lowest is the first.
    """
    if len(bank) == 0:
        raise ValueError("k-NN needs at least one bank feature.")
    cosines, where = nearest(bank, queries, max(ks), query_block=block or QUERY_BLOCK)
    predicted = torch.empty(len(ks), len(queries), top, dtype=torch.int64, device=queries.device)
    for rows in torch.arange(len(queries)).split(block or max(1, MOST_VOTES // classes)):
        near, labels = cosines[rows], bank_labels[where[rows]]
        for number, k in enumerate(ks):
            counted = votes(near[:, :k], labels[:, :k], temperature=temperature, classes=classes)
            best = counted.topk(top, dim=1)
            first = counted.argmax(dim=1, keepdim=True)  # topk takes any of equal ones
            indices = torch.where(best.indices == first, best.indices[:, :1], best.indices)
            indices[:, :1] = first
            predicted[number, rows] = indices.where(best.values > 0, -1)
    return predicted


class NearestNeighbors:
    """The evaluation `knn`: held-out images classified by their nearest training images."""

    def __init__(self, cfg: KnnConfig) -> None:
        self.cfg = cfg

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError without labels on both sides."""
        labeled(data.splits)

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Compute top1_k20 and, where k and the classes are enough, top5_k20; processes share the queries."""
        train, test = labeled(data.splits)
        bank, queries = data.features("train"), data.features("test")
        if not (bank.is_finite() and queries.is_finite()):
            raise DivergedError(subject.name)
        bank_labels = torch.as_tensor(train.labels)[bank.indices].to(subject.device)
        answers = torch.as_tensor(test.labels)[queries.indices].to(subject.device)
        classes = int(bank_labels.max()) + 1
        predicted = predict(
            bank.final,
            bank_labels,
            distributed.share_of(queries.final).to(subject.device),
            ks=self.cfg.k,
            temperature=self.cfg.temperature,
            classes=classes,
            top=min(5, classes),
        )
        # (queries, k, 5): whether the right class comes first, second, ...
        right = predicted == distributed.share_of(answers)[:, None]
        hits = distributed.gathered(right.transpose(0, 1).cpu()).double()
        findings = Findings()
        for k, of_k in zip(self.cfg.k, hits.unbind(1), strict=True):
            findings.figures[f"top1_k{k}"] = 100 * of_k[:, 0].mean().item()
            if classes > 5 <= k:
                findings.figures[f"top5_k{k}"] = 100 * of_k.sum(dim=1).mean().item()
            if k > len(bank.indices):
                findings.notes.append(
                    f"k = {k} is more than the {len(bank.indices):,} images in the bank; all of them vote."
                )
        findings.details = {"bank": len(bank.indices), "queries": len(answers), "classes": classes}
        return findings
