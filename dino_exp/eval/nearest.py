"""The evaluation `knn`: top-1 and top-5 of weighted k-NN for several k at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dino_exp.errors import UserError
from dino_exp.eval.knn import nearest, votes
from dino_exp.eval.subject import Findings, LabeledData, Subject, labeled
from dino_exp.parallel import distributed

MOST_VOTES = 2**24
"""Votes (queries x classes) counted at once."""


@dataclass(frozen=True, kw_only=True)
class NearestNeighbors:
    """k-NN on all held-out images with all training images as bank; fields as in `KnnConfig`."""

    k: list[int]
    temperature: float

    def check(self, subject: Subject, data: LabeledData) -> None:
        """Raise UserError without labels on both sides."""
        labeled(data.splits)

    def evaluate(self, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        """Figures top1_k20 and, where k and the classes are enough, top5_k20; processes share the queries."""
        train, test = labeled(data.splits)
        bank, queries = data.features("train"), data.features("test")
        if not (_finite(bank.final) and _finite(queries.final)):
            raise UserError(f"{subject.name}: its features are not finite numbers; the network has diverged.")
        bank_labels = torch.as_tensor(train.labels)[bank.indices].to(subject.device)
        answers = torch.as_tensor(test.labels)[queries.indices]
        classes, total = int(bank_labels.max()) + 1, len(answers)
        own = distributed.share_of(queries.final).to(subject.device)
        cosines, where = nearest(bank.final, own, max(self.k))
        mine, ranks = distributed.share_of(answers).to(subject.device), []
        for k in self.k:
            block = max(1, MOST_VOTES // classes)
            for rows in torch.arange(len(mine)).split(block):
                of_classes = votes(
                    cosines[rows, :k],
                    bank_labels[where[rows, :k]],
                    temperature=self.temperature,
                    classes=classes,
                )
                best = of_classes.topk(min(5, classes), dim=1)
                hits = (best.indices == mine[rows, None]) & (best.values > 0)  # without a vote it is no guess
                ranks.append(hits.cpu())
        # (k, queries, 5): whether the right class comes first, second, ...
        right = distributed.gathered(
            torch.cat(ranks).unflatten(0, (len(self.k), -1)).transpose(0, 1)
        ).transpose(0, 1)
        figures = {}
        for k, hits in zip(self.k, right.double(), strict=True):
            figures[f"top1_k{k}"] = 100 * hits[:, 0].mean().item()
            if classes > 5 <= k:
                figures[f"top5_k{k}"] = 100 * hits.sum(dim=1).mean().item()
        notes = [
            f"k = {k} is more than the {len(bank.indices):,} images in the bank; all of them vote."
            for k in self.k
            if k > len(bank.indices)
        ]
        details = {"bank": len(bank.indices), "queries": total, "classes": classes}
        return Findings(figures, details, notes)


def _finite(features: torch.Tensor) -> bool:
    return all(bool(part.isfinite().all()) for part in features.split(65536))
