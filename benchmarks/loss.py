"""Time and memory of the loss, forward and backward: ours against the sum over pairs.

python -m benchmarks.loss [--batch 16] [--crops 10] [--threads 1] [--device cpu] [--compile] [--bf16]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import least_seconds, peak_extra_mib, report
from benchmarks.plain import pairwise_loss
from dino_exp.dino.loss import DINOLoss


def forward_and_backward(loss: Callable[..., Tensor], student: Tensor, teacher: Tensor) -> None:
    """Compute the loss and the student's gradient, and free the gradient."""
    loss(student, torch.softmax(teacher / 0.04, dim=1)).backward()
    student.grad = None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--crops", type=int, default=10, help="crops per image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="measure trainer.compile=true too")
    parser.add_argument("--bf16", action="store_true", help="student logits in bfloat16, as under autocast")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rows = []
    for out_dim in (4096, 65536):
        torch.manual_seed(0)
        student = torch.randn(arguments.crops * arguments.batch, out_dim, device=device)
        student = student.to(torch.bfloat16 if arguments.bf16 else torch.float32).requires_grad_()
        teacher = torch.randn(2 * arguments.batch, out_dim, device=device)
        losses: dict[str, Callable[..., Tensor]] = {
            "pairwise": partial(pairwise_loss, student_temp=0.1),
            "ours": DINOLoss(out_dim=out_dim).cross_entropy,
        }
        if arguments.compile:
            compiled = DINOLoss(out_dim=out_dim)
            compiled.compile()
            losses["ours, compiled"] = compiled.cross_entropy

        variants = {
            name: partial(forward_and_backward, loss, student, teacher) for name, loss in losses.items()
        }
        seconds = least_seconds(variants, arguments.repeats, device)
        memory = {name: peak_extra_mib(variant, device) for name, variant in variants.items()}
        for name in variants:
            mine = memory[name]
            reference = memory["pairwise"]
            rows.append(
                {
                    "K": str(out_dim),
                    "loss": name,
                    "ms": 1e3 * seconds[name],
                    "times as fast": seconds["pairwise"] / seconds[name],
                    "extra MiB": mine,
                    "share of memory": mine / reference if mine and reference else None,
                }
            )
    title = f"Loss, forward and backward: {arguments.batch} images, {arguments.crops} crops, {device}"
    report("loss", title, rows, device)


if __name__ == "__main__":
    main()
