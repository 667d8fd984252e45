"""Weighted k-nearest-neighbor classification (Wu et al. 2018; DINO section 4.1 and appendix F.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_exp.data.source import ImageSource, Splits
from dino_exp.data.subset import evenly_spread
from dino_exp.eval.features import Features, extract, pixels
from dino_exp.eval.subject import labeled

BANK_BLOCK, QUERY_BLOCK = 16384, 1024
"""Similarities of a block, 64 MiB, stay near the cores; with the neighbors so far that is all the memory."""


@torch.no_grad()
def nearest(
    bank: Tensor, queries: Tensor, k: int, *, query_block: int = QUERY_BLOCK, bank_block: int = BANK_BLOCK
) -> tuple[Tensor, Tensor]:
    """Cosines and bank rows of the k nearest to each query, nearest first: two tensors (M, min(k, N)).

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
    """The k best of those so far (Q, k) and of a block's (Q, B), whose first is bank row `bank_start`."""
    (rows, k), block = near.shape, cosines.shape[1]
    if bank_start == 0 and block >= k:
        best, numbers = cosines.topk(k, dim=1)
        return best, numbers
    found = (cosines > near[:, -1:]).flatten().nonzero().squeeze(1)
    row = found // block
    counts = torch.bincount(row, minlength=rows)
    place = k + torch.arange(len(found), device=found.device) - (counts.cumsum(0) - counts)[row]
    width = k + (int(counts.max()) if len(found) else 0)
    candidates = near.new_full((rows, width), -torch.inf)
    numbers = where.new_zeros((rows, width))
    candidates[:, :k], numbers[:, :k] = near, where
    candidates[row, place] = cosines.flatten()[found]
    numbers[row, place] = found - row * block + bank_start
    best, chosen = candidates.topk(k, dim=1)
    return best, numbers.gather(1, chosen)


@torch.no_grad()
def votes(cosines: Tensor, labels: Tensor, *, temperature: float, classes: int) -> Tensor:
    """Votes for each class (M, classes) of neighbors' labels (M, k), each of weight exp(cosine / T).

    A query's weights are divided by its largest, which changes no comparison and cannot overflow at small T;
    the nearest neighbor comes first.
    """
    weights = ((cosines - cosines[:, :1]) / temperature).exp()
    return torch.zeros(len(cosines), classes, device=cosines.device).scatter_add_(1, labels, weights)


@torch.no_grad()
def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    k: int | Sequence[int],
    temperature: float,
    classes: int,
    block: int = QUERY_BLOCK,
) -> Tensor:
    """Class of each query by the votes of its k nearest bank features, each with weight exp(cosine / T).

    bank (N, D), bank_labels (N,) int64 in [0, classes), queries (M, D); all on one device. Features need
    not be normalized. k above N is cut to N. `block` queries are compared at once.
    Returns (M,) for one k, (len(k), M) for several, which share the similarities.
    """
    if len(bank) == 0:
        raise ValueError("k-NN needs at least one bank feature.")
    several = [k] if isinstance(k, int) else list(k)
    cosines, where = nearest(bank, queries, max(several), query_block=block)
    predicted = torch.empty(len(several), len(queries), dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        near, labels = cosines[rows], bank_labels[where[rows]]
        for row, count in enumerate(several):
            of_classes = votes(near[:, :count], labels[:, :count], temperature=temperature, classes=classes)
            predicted[row, rows] = of_classes.argmax(dim=1)
    return predicted[0] if isinstance(k, int) else predicted


@dataclass(frozen=True, kw_only=True)
class KNN:
    """k-NN top-1 on held-out images with the training images as bank; fields as in `EvalConfig`."""

    k: int
    temperature: float
    bank_size: int | None
    query_size: int | None
    batch_size: int
    crop_ratio: float

    def applies(self, splits: Splits) -> bool:
        """Whether there are held-out images and labels on both sides."""
        return splits.test is not None and splits.train.labels is not None and splits.test.labels is not None

    def accuracy(
        self, bank_features: Tensor, bank_labels: Tensor, query_features: Tensor, query_labels: Tensor
    ) -> float:
        """Percent of the queries (M, D) whose class is predicted right; NaN where features are not finite."""
        if not (bank_features.isfinite().all() and query_features.isfinite().all()):
            return float("nan")
        predicted = knn_predict(
            bank_features,
            bank_labels,
            query_features,
            k=self.k,
            temperature=self.temperature,
            classes=int(bank_labels.max()) + 1,
        )
        return 100 * (predicted == query_labels).double().mean().item()

    def evaluate(
        self,
        backbone: nn.Module,
        splits: Splits,
        *,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str,
        workers: int = 0,
    ) -> float:
        """k-NN top-1 of the backbone's features in percent; the backbone must be on `device`.

        Raises UserError where `applies` is false, or where train and test have different classes.
        """
        train, test = labeled(splits)

        def features(source: ImageSource, size: int | None) -> Features:
            return extract(
                backbone,
                source,
                evenly_spread(len(source), size),
                image_size=image_size,
                crop_ratio=self.crop_ratio,
                mean=mean,
                std=std,
                batch_size=self.batch_size,
                device=device,
                workers=workers,
            )

        bank, queries = features(train, self.bank_size), features(test, self.query_size)
        return self._accuracy_on(device, train, bank, test, queries)

    def evaluate_pixels(
        self, splits: Splits, *, image_size: int, device: torch.device | str = "cpu"
    ) -> float:
        """The baseline: the same k-NN on raw pixels, mean-centered, for the same images; in percent."""
        train, test = labeled(splits)
        bank, queries = pixels(
            train,
            evenly_spread(len(train), self.bank_size),
            test,
            evenly_spread(len(test), self.query_size),
            image_size=image_size,
            crop_ratio=self.crop_ratio,
            batch_size=self.batch_size,
        )
        return self._accuracy_on(device, train, bank, test, queries)

    def _accuracy_on(
        self,
        device: torch.device | str,
        train: ImageSource,
        bank: Features,
        test: ImageSource,
        queries: Features,
    ) -> float:
        bank_labels = torch.as_tensor(train.labels)[bank.indices]
        query_labels = torch.as_tensor(test.labels)[queries.indices]
        tensors = (bank.values, bank_labels, queries.values, query_labels)
        return self.accuracy(*(tensor.to(device) for tensor in tensors))
