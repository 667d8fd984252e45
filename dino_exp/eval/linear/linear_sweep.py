"""Linear classifiers trained by SGD, all learning rates and feature choices in one pass over the batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from dino_exp.eval.linear.linear_data import FeatureBatch


class Classifiers:
    """Softmax regressions on the same columns of the features, one per learning rate (S), trained at once.

    Initial weights are normal with standard deviation 0.01, biases 0, the same for all learning rates
    (eval_linear.py). Weights are stored as (classes, S, width): logits are then one matrix product for all
    learning rates, (classes, S · B), and its softmax over the first axis runs along contiguous memory.
    Therefore S classifiers cost little more than their arithmetic.
    """

    def __init__(
        self,
        columns: slice,
        lrs: Sequence[float],
        *,
        classes: int,
        momentum: float,
        weight_decay: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.columns, self.momentum, self.weight_decay = columns, momentum, weight_decay
        self.lrs = torch.tensor(lrs, dtype=torch.float32, device=device)
        # A generator for this choice alone: the result does not depend on what else is trained.
        random = torch.Generator().manual_seed(seed)
        initial = torch.randn(classes, 1, columns.stop - columns.start, generator=random).mul_(0.01)
        self.weight = initial.to(device).repeat(1, len(lrs), 1)
        self.bias = torch.zeros(classes, len(lrs), device=device)
        self.weight_momentum, self.bias_momentum = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def logits(self, features: Tensor) -> Tensor:
        """Return logits (classes, S, B) of features (B, all columns)."""
        classes, number, width = self.weight.shape
        x = features[:, self.columns]
        flat = torch.addmm(self.bias.view(-1, 1), self.weight.view(-1, width), x.t())
        return flat.view(classes, number, len(x))

    def step(self, features: Tensor, labels: Tensor, factor: float) -> None:
        """Take a step of torch.optim.SGD on the mean cross-entropy, at `factor` times the learning rates."""
        classes, number, width = self.weight.shape
        batch = len(labels)
        error = self.logits(features).view(classes, -1).softmax(dim=0).view(classes, number, batch)
        # The gradient by the logits is softmax minus one-hot target; autograd would keep and copy more.
        target = labels.expand(1, number, batch)
        error.scatter_add_(0, target, error.new_full((1, 1, 1), -1.0).expand(1, number, batch))
        flat = error.view(-1, batch)
        self.weight_momentum.view(-1, width).addmm_(
            flat, features[:, self.columns], beta=self.momentum, alpha=1 / batch
        )
        self.bias_momentum.mul_(self.momentum).add_(error.sum(dim=2), alpha=1 / batch)
        if self.weight_decay:
            self.weight_momentum.add_(self.weight, alpha=self.weight_decay)
            self.bias_momentum.add_(self.bias, alpha=self.weight_decay)
        self.weight.addcmul_(self.weight_momentum, self.lrs.view(1, -1, 1), value=-factor)
        self.bias.addcmul_(self.bias_momentum, self.lrs, value=-factor)


@torch.no_grad()
def train(
    classifiers: Sequence[Classifiers],
    epoch_of: Callable[[int], Iterable[FeatureBatch]],
    *,
    epochs: int,
    batch_size: int,
) -> None:
    """Train the classifiers in place on the batches of each epoch, which are read once for all of them.

    Learning rates are for a batch of 256, scaled linearly, and follow a cosine to 0, one value per epoch, as
    in eval_linear.py.
    """
    for epoch in range(epochs):
        factor = batch_size / 256 * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for features, labels in epoch_of(epoch):
            for each in classifiers:
                each.step(features, labels, factor)


@torch.no_grad()
def accuracies(classifiers: Sequence[Classifiers], batches: Iterable[FeatureBatch], k: int) -> list[float]:
    """Return each classifier's top-k accuracy in percent.

    NaN where a logit is not finite: a classifier that has diverged must not win by chance.
    """
    right = [torch.zeros_like(each.lrs, dtype=torch.int64) for each in classifiers]
    finite = [torch.ones_like(each.lrs, dtype=torch.bool) for each in classifiers]
    images = 0
    for features, labels in batches:
        images += len(labels)
        for number, each in enumerate(classifiers):
            logits = each.logits(features)
            likeliest = logits.argmax(dim=0, keepdim=True) if k == 1 else logits.topk(k, dim=0).indices
            right[number] += (likeliest == labels).any(dim=0).sum(dim=1)
            finite[number] &= logits.isfinite().all(dim=2).all(dim=0)
    shares = [100 * hits.cpu().double() / images for hits in right]
    of_each = [share.masked_fill(~good.cpu(), math.nan) for share, good in zip(shares, finite, strict=True)]
    return torch.cat(of_each).tolist()
