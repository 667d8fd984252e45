"""Batch norm over the global batch, all processes together, as in the released code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from dino_exp.parallel import distributed


def synchronize_batch_norms(network: nn.Module, device: torch.device) -> None:
    """Replace every batch norm inside `network` by one over the global batch; parameters and names stay.

    On CUDA by torch's SyncBatchNorm (through timm's function, which also converts timm's batch norms with a
    built-in activation); elsewhere, where that does not work, by `SynchronizedBatchNorm`.
    """
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # timm takes a fifth of a run's start

        convert_sync_batchnorm(network)
        return
    for path, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm):
            network.set_submodule(path, SynchronizedBatchNorm(module))


class SynchronizedBatchNorm(_BatchNorm):
    """Replacement of `original` with its parameters, buffers, and (in timm's) dropout and activation.

    All processes must have the same number of values per channel.
    """

    def __init__(self, original: _BatchNorm) -> None:
        super().__init__(
            original.num_features,
            original.eps,
            original.momentum,
            original.affine,
            original.track_running_stats,
        )
        own = (*original.named_parameters(recurse=False), *original.named_buffers(recurse=False))
        for name, value in own:
            setattr(self, name, value)
        for name, module in original.named_children():
            self.add_module(name, module)
        self.train(original.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C) or (B, C, ...), same shape and type; in eval mode like any batch norm."""
        normalized = self._over_all(x) if self.training else super().forward(x)
        for module in self.children():
            normalized = module(normalized)
        return normalized

    def _check_input_dim(self, input: Tensor) -> None:  # abstract in the base class
        pass

    def _over_all(self, x: Tensor) -> Tensor:
        others = [dim for dim in range(x.ndim) if dim != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _MeanOverProcesses.apply(values.mean(others))
        centered = values - mean.view(shape)
        variance = _MeanOverProcesses.apply(centered.square().mean(others))
        self._update_statistics(mean, variance, distributed.count() * x.numel() // x.shape[1])
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = torch.addcmul(self.bias.view(shape), normalized, self.weight.view(shape))
        return normalized.to(x.dtype)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, variance: Tensor, values: int) -> None:
        """Move the running mean, and the running variance, which is the unbiased one of all `values`."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        unbiased = variance * (values / max(1, values - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


class _MeanOverProcesses(torch.autograd.Function):
    """Mean over the processes. Each process's loss depends on it, so its gradient is their mean too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return distributed.mean(value.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return distributed.mean(gradient.clone())
