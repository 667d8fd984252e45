"""Weighted k-nearest-neighbour classification (Wu et al. 2018; DINO section 4.1 and appendix F.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_exp.data.source import ImageSource, Splits
from dino_exp.errors import UserError
from dino_exp.eval.features import Features, extract, pixels

# Similarities held at once when no block is given: 2^25 floats are 128 MiB.
SIMILARITIES_AT_ONCE = 2**25

GOLDEN = 0.6180339887498949


@torch.no_grad()
def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    *,
    k: int | Sequence[int],
    temperature: float,
    classes: int,
    block: int | None = None,
) -> Tensor:
    """Class of each query by the votes of its k nearest bank features, each with weight exp(cosine / T).

    bank (N, D), bank_labels (N,) int64 in [0, classes), queries (M, D); all on one device. Features need
    not be normalised. k above N is cut to N. `block` queries are compared at once.
    Returns (M,) for one k, (len(k), M) for several, which share the similarities.
    """
    if len(bank) == 0:
        raise ValueError("k-NN needs at least one bank feature.")
    several = [k] if isinstance(k, int) else list(k)
    neighbours = [min(each, len(bank)) for each in several]
    block = block or max(1, SIMILARITIES_AT_ONCE // len(bank))
    bank_t = F.normalize(bank.float(), dim=1).t()
    predicted = torch.empty(len(several), len(queries), dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), block):
        similarity = F.normalize(queries[start : start + block].float(), dim=1) @ bank_t
        nearest, where = similarity.topk(max(neighbours), dim=1)
        # Dividing all of a query's weights by its largest changes no vote and cannot overflow at small T.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        labels = bank_labels[where]
        for row, count in enumerate(neighbours):
            votes = torch.zeros(len(similarity), classes, device=weights.device)
            votes.scatter_add_(1, labels[:, :count], weights[:, :count])
            predicted[row, start : start + block] = votes.argmax(dim=1)
    return predicted[0] if isinstance(k, int) else predicted


def spread(length: int, size: int | None) -> list[int]:
    """`size` of `length` indices (None or more than there are: all), evenly spread, always the same.

    One index from each of `size` equal stretches. Its place within the stretch follows the golden ratio:
    a constant step would pick a single class where the classes take turns (0, 1, …, 9, 0, 1, …).
    """
    if size is None or size >= length:
        return list(range(length))
    stretch = np.arange(size, dtype=np.int64)
    start, end = stretch * length // size, (stretch + 1) * length // size
    return (start + (stretch * GOLDEN % 1.0 * (end - start)).astype(np.int64)).tolist()


@dataclass(frozen=True, kw_only=True)
class KNN:
    """k-NN top-1 on held-out pictures with the training pictures as bank; fields as in `EvalConfig`."""

    k: int
    temperature: float
    every_epochs: int
    bank_size: int | None
    query_size: int | None
    batch_size: int
    crop_ratio: float

    def applies(self, splits: Splits) -> bool:
        """Whether there are held-out pictures and labels on both sides."""
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
        train, test = self._labelled(splits)

        def features(source: ImageSource, size: int | None) -> Features:
            return extract(
                backbone,
                source,
                spread(len(source), size),
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
        """The baseline: the same k-NN on raw pixels, mean-centred, for the same pictures; in percent."""
        train, test = self._labelled(splits)
        bank, queries = pixels(
            train,
            spread(len(train), self.bank_size),
            test,
            spread(len(test), self.query_size),
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

    def _labelled(self, splits: Splits) -> tuple[ImageSource, ImageSource]:
        train, test = splits.train, splits.test
        if test is None:
            raise UserError("k-NN needs held-out pictures; this data set has none (data.val_root).")
        if train.labels is None or test.labels is None:
            side = "training" if train.labels is None else "held-out"
            raise UserError(f"k-NN needs labels; the {side} pictures have none.")
        if train.classes is not None and test.classes is not None and train.classes != test.classes:
            missing = sorted(set(train.classes) ^ set(test.classes))
            raise UserError(
                f"k-NN: training and held-out pictures have different classes, so their labels do not "
                f"match; only on one side: {', '.join(missing[:5]) or 'none, but the order differs'}."
            )
        return train, test
