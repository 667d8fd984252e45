"""The DINO loss: cross-entropy between teacher and student over pairs of crops (section 3.1)::

    P_s(x') = softmax(student logits / τ_s)                        eq. 1
    P_t(x) = softmax((teacher logits − c) / τ_t)                   centered by c, sharpened by a low τ_t
    loss = mean of H(P_t(x), P_s(x')) over the pairs x ≠ x'        eq. 2 and 3, there a sum; H(a, b) = −a·ln b
    c ← m·c + (1 − m)·mean of the batch's teacher logits           eq. 4

where x is one of the two global crops of an image and x' any crop of it.

The sum over pairs factorizes. With z = student logits / τ_s of one crop, and T the sum of the teacher's
distributions over the global crops that this crop is paired with (p of them: the other one for a global crop,
both for a local crop), the crop's terms are::

    Σ_pairs H(P_t, P_s) = p · logsumexp(z) − Σ_k T_k z_k,    gradient in z:  p · softmax(z) − T.

So each crop is read once, instead of once per pair, and the gradient is known before the backward pass. The
same sums are written twice here: as a loop over crops that needs the least memory, and in a form from which
`torch.compile` makes a few GPU kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dino_exp.parallel import distributed

SINKHORN_ITERATIONS = 3


class DINOLoss(nn.Module):
    """Cross-entropy between the centered, sharpened teacher and the student; keeps the center.

    Its buffers are part of a checkpoint: `center` (1, K), and `center_initialized`, which is false only
    before the first batch with `center_init = first_batch`.
    """

    center: Tensor
    center_initialized: Tensor

    def __init__(
        self,
        *,
        out_dim: int,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        warmup_teacher_temp: float = 0.04,
        warmup_teacher_temp_epochs: int = 0,
        center_momentum: float = 0.9,
        center_init: str = "zeros",
        centering: str = "mean",
        sharpening: bool = True,
    ) -> None:
        super().__init__()
        self.student_temp = student_temp
        self.teacher_temp = teacher_temp if sharpening else student_temp
        self.warmup = np.linspace(warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs * sharpening)
        self.center_momentum = center_momentum
        self.centering = centering
        self.register_buffer("center", torch.zeros(1, out_dim))
        self.register_buffer("center_initialized", torch.tensor(center_init != "first_batch"))
        self.awaits_first_batch = center_init == "first_batch" and centering == "mean"
        self._compiled: Callable[[Tensor, Tensor, float], Tensor] | None = None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compute `cross_entropy` by kernels of `torch.compile`, which takes the arguments, from now on.

        For GPUs: 5 launches instead of 130, and half the memory traffic. On a CPU the loop is faster.
        """
        self._compiled = torch.compile(factorized_cross_entropy, *args, fullgraph=True, **kwargs)

    def teacher_temp_at(self, epoch: int) -> float:
        """Return τ_t of an epoch, from 0: a linear warm-up that includes both its ends, then constant."""
        return float(self.warmup[epoch]) if epoch < len(self.warmup) else self.teacher_temp

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, teacher_temp: float) -> Tensor:
        """Return the mean cross-entropy over the 2·(n − 1) pairs of different crops, then move the center.

        `student_logits` (n·B, K) and `teacher_logits` (2·B, K) are crop-major: rows [i·B, (i + 1)·B) are
        crop i, global crops first. The loss uses the center of the previous step. It is a float32 scalar
        even if the logits have a half type. Raises `ValueError` for shapes that do not fit.
        """
        check_shapes(student_logits, teacher_logits, self.center.shape[1])
        with torch.autocast(student_logits.device.type, enabled=False):
            probabilities = self.teacher_probabilities(teacher_logits, teacher_temp)
            loss = self.cross_entropy(student_logits, probabilities)
            self.move_center(teacher_logits)
        return loss

    def cross_entropy(self, student_logits: Tensor, teacher_probabilities: Tensor) -> Tensor:
        """Return the mean of H(P_t, P_s) over the pairs, a scalar; see `cross_entropy_over_pairs`."""
        function = self._compiled or cross_entropy_over_pairs
        return function(student_logits, teacher_probabilities, self.student_temp)

    @torch.no_grad()
    def teacher_probabilities(self, teacher_logits: Tensor, teacher_temp: Tensor | float) -> Tensor:
        """Return P_t = softmax((logits − center) / τ_t), (2·B, K) -> (2·B, K), in float32 at least.

        At τ_t = 0 it is one-hot at the largest entry; τ_t as a tensor, which nothing waits for, must be > 0.
        With `centering = sinkhorn` the rows are balanced over both global crops of the global batch instead
        of centered. With `center_init = first_batch` the first call of a run initializes the center.
        """
        if self.awaits_first_batch:
            self._start_center(teacher_logits)
        # unless `centering = mean` the center is 0, and the subtraction only makes a float32 copy
        logits = teacher_logits - self.center
        if not isinstance(teacher_temp, Tensor) and teacher_temp == 0:
            return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
        logits.div_(teacher_temp)
        return sinkhorn_knopp(logits) if self.centering == "sinkhorn" else torch.softmax(logits, dim=1)

    def _start_center(self, teacher_logits: Tensor) -> None:
        # decided by a tensor, which a checkpoint may have loaded, so that nothing waits for the device
        batch_mean = self._batch_mean(teacher_logits)
        self.center.copy_(torch.where(self.center_initialized, self.center, batch_mean))
        self.center_initialized.fill_(True)
        self.awaits_first_batch = False

    @torch.no_grad()
    def move_center(self, teacher_logits: Tensor) -> None:
        """Move the center once per step by eq. 4, to the mean of all processes' teacher logits (2·B, K)."""
        if self.centering == "mean":
            batch_mean = self._batch_mean(teacher_logits)
            self.center.mul_(self.center_momentum).add_(batch_mean, alpha=1 - self.center_momentum)

    def _batch_mean(self, teacher_logits: Tensor) -> Tensor:
        """Return the mean over the global crops of all processes, (1, K) in the center's type."""
        return distributed.mean(teacher_logits.mean(dim=0, keepdim=True, dtype=self.center.dtype))


def check_shapes(student_logits: Tensor, teacher_logits: Tensor, out_dim: int) -> None:
    """Raise `ValueError` unless the logits are (n·B, K) and (2·B, K) for whole numbers n >= 2 and B."""
    rows, batch = len(student_logits), len(teacher_logits) // 2
    fits = batch > 0 and len(teacher_logits) == 2 * batch and rows >= 2 * batch and rows % batch == 0
    if not fits or student_logits.shape[1:] != (out_dim,) or teacher_logits.shape[1:] != (out_dim,):
        raise ValueError(
            f"student logits {tuple(student_logits.shape)} and teacher logits {tuple(teacher_logits.shape)}: "
            f"must be (n·B, {out_dim}) and (2·B, {out_dim}) for n >= 2 crops of B images"
        )


def sinkhorn_knopp(scores: Tensor) -> Tensor:
    """Balance exp(scores), (R, K) -> (R, K): rows sum to 1, and all prototypes get an equal share.

    Three Sinkhorn-Knopp iterations over the rows of all processes, the last normalization being that of rows
    (SwAV, Caron et al. 2020; DINOv2). In logarithms, where no temperature causes over- or underflow.
    """
    log_q = scores
    for _ in range(SINKHORN_ITERATIONS):
        log_q = log_q - logsumexp_over_batch(log_q)
        log_q = torch.log_softmax(log_q, dim=1)
    return log_q.exp()


def logsumexp_over_batch(scores: Tensor) -> Tensor:
    """Return the logsumexp over the rows of all processes, (R, K) -> (1, K)."""
    local = torch.logsumexp(scores, dim=0, keepdim=True)
    if not distributed.several():
        return local
    largest = distributed.largest(local.clone())
    return distributed.total((local - largest).exp_()).log_() + largest


def cross_entropy_over_pairs(
    student_logits: Tensor, teacher_probabilities: Tensor, student_temp: float
) -> Tensor:
    """Return the mean of H(P_t, P_s) over the pairs of different crops, differentiable in `student_logits`.

    Args:
        student_logits: (n·B, K) of any floating type.
        teacher_probabilities: (2·B, K), float32 or float64. Overwritten: its memory is used as scratch.
        student_temp: τ_s.
    """
    if torch.is_grad_enabled() and student_logits.requires_grad:
        return _PairwiseCrossEntropy.apply(student_logits, teacher_probabilities, student_temp)
    return _loss_and_gradient(student_logits, teacher_probabilities, student_temp, None, 1.0)


def factorized_cross_entropy(
    student_logits: Tensor, teacher_probabilities: Tensor, student_temp: float
) -> Tensor:
    """Return what `cross_entropy_over_pairs` does, for `torch.compile`: uncompiled it needs more memory.

    Compiled, it keeps no tensor of the logits' size but its inputs. The backward pass reads them again, and
    multiplies by the loss scale in the kernel that writes the gradient.
    """
    first, second = teacher_probabilities.chunk(2)
    z = student_logits.view(-1, *first.shape).to(first.dtype) / student_temp
    crop = torch.arange(len(z), device=z.device).view(-1, 1, 1)
    targets = (crop != 0) * first + (crop != 1) * second
    pairs = (crop != 0).to(z.dtype) + (crop != 1).to(z.dtype)
    terms = pairs * torch.logsumexp(z, dim=-1, keepdim=True) - (targets * z).sum(dim=-1, keepdim=True)
    return terms.sum() / (2 * (len(z) - 1) * len(first))


class _PairwiseCrossEntropy(torch.autograd.Function):
    """The loss with its gradient, which is computed in the forward pass and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher_probabilities: Tensor, student_temp: float
    ) -> Tensor:
        gradient = torch.empty_like(student_logits, memory_format=torch.contiguous_format)
        ctx.gradient_scale = gradient_scale(student_logits, teacher_probabilities, student_temp)
        ctx.save_for_backward(gradient)
        return _loss_and_gradient(
            student_logits, teacher_probabilities, student_temp, gradient, ctx.gradient_scale
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        scale = grad_output / ctx.gradient_scale
        if scale.device.type == "cpu" and scale.item() == 1.0:
            return gradient, None, None
        # in place, so that autograd refuses a second backward pass through the graph, which would be wrong
        return gradient.mul_(scale), None, None


def gradient_scale(student_logits: Tensor, teacher_probabilities: Tensor, student_temp: float) -> float:
    """Return the power of two by which the stored gradient is larger than the true one; 1 except in float16.

    Most entries of the true gradient are too small for float16, and the loss scale of mixed precision arrives
    only in the backward pass. So entries are stored with a factor that makes the largest at most 2**15, and
    the backward pass divides by this exact power of two.
    """
    if student_logits.dtype != torch.float16:
        return 1.0
    largest = 2 * pair_weight(student_logits, teacher_probabilities) / student_temp
    return 2.0 ** (15 - math.ceil(math.log2(largest)))


def pair_weight(student_logits: Tensor, teacher_probabilities: Tensor) -> float:
    """Return the weight of one sample of one pair in the mean, 1 / (B · number of pairs)."""
    batch = len(teacher_probabilities) // 2
    return 1.0 / (batch * 2 * (len(student_logits) // batch - 1))


def _loss_and_gradient(
    student_logits: Tensor,
    teacher_probabilities: Tensor,
    student_temp: float,
    gradient: Tensor | None,
    gradient_scale: float,
) -> Tensor:
    """Return the loss, and write its gradient times `gradient_scale` to `gradient` (n·B, K) if given.

    Needs scratch for one crop, (B, K) of the probabilities' type; for two if `gradient` cannot be the second.
    """
    batch = len(teacher_probabilities) // 2
    weight = pair_weight(student_logits, teacher_probabilities)
    slope = gradient_scale * weight / student_temp
    # targets become −slope · T, so that one operation per crop writes p · slope · softmax(z) − slope · T
    first, second = teacher_probabilities.mul_(-slope).split(batch)
    # one-dimensional, not a scalar, so that half types are promoted before they are multiplied
    inverse_temp = teacher_probabilities.new_full((1,), 1 / student_temp)
    loss = teacher_probabilities.new_zeros(())
    likelihood: Tensor | None = None
    z: Tensor | None = None
    for crop, logits in enumerate(student_logits.split(batch)):
        if crop == 2:
            first += second  # the global crops are done; every local crop is paired with both
        target, pairs = (second, 1) if crop == 0 else (first, 1 if crop == 1 else 2)
        rows = slice(crop * batch, (crop + 1) * batch)
        if gradient is not None and gradient.dtype == target.dtype:
            z = gradient[rows]
        z = torch.mul(logits, inverse_temp, out=z)
        likelihood = torch.softmax(z, dim=1, out=likelihood)
        # at the largest entry, z − log softmax(z) is the logsumexp without a further pass of exponentials
        log_sum = z.amax(dim=1) - likelihood.amax(dim=1).log_()
        loss += pairs * weight * log_sum.sum() + torch.dot(target.flatten(), z.flatten()) * (weight / slope)
        if gradient is not None:
            torch.add(target, likelihood, alpha=pairs * slope, out=gradient[rows])
    return loss
