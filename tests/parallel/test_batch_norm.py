"""Batch norm in two processes equals batch norm on their joint batch."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from dino_exp.parallel.batch_norm import SynchronizedBatchNorm, synchronize_batch_norms
from tests.programs import in_two_processes


def network(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6, momentum=momentum),
        nn.Conv2d(6, 4, 3),
        BatchNormAct2d(4, act_layer=nn.ReLU),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8, affine=False),
    ).double()


def images() -> torch.Tensor:
    return torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 5


def two_steps(model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """Return outputs, gradients, and the state after two batches."""
    x = x.clone().requires_grad_()
    for factor in (1.0, 3.0):
        output = model(factor * x)
        output.sin().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.eval()
    return {
        "output": output.detach(),
        "input gradient": x.grad,
        "gradients": gradients,
        "state": model.state_dict(),
        "eval": model(x).detach(),
    }


def save_two_steps(rank: int, folder: str) -> None:
    for momentum in (0.1, None):
        ours = network(momentum)
        synchronize_batch_norms(ours, torch.device("cpu"))
        assert sum(isinstance(module, SynchronizedBatchNorm) for module in ours.modules()) == 3
        half = two_steps(ours, images()[5 * rank : 5 * rank + 5])
        for gradient in half["gradients"].values():
            dist.all_reduce(gradient)
        torch.save(half, f"{folder}/{rank}-{momentum}.pt")


def test_two_processes_equal_one_with_the_joint_batch(tmp_path: Path) -> None:
    in_two_processes(save_two_steps, str(tmp_path))
    for momentum in (0.1, None):
        one = two_steps(network(momentum), images())
        halves = [torch.load(tmp_path / f"{rank}-{momentum}.pt") for rank in range(2)]
        for name in ("output", "eval", "input gradient"):
            joint = torch.cat([half[name] for half in halves])
            torch.testing.assert_close(joint, one[name], rtol=0, atol=1e-10)
        for half in halves:
            torch.testing.assert_close(half["gradients"], one["gradients"], rtol=0, atol=1e-10)
            assert half["state"].keys() == one["state"].keys()
            for name, value in one["state"].items():
                torch.testing.assert_close(half["state"][name], value, rtol=0, atol=1e-10, msg=name)
