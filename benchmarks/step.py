"""Speed of the training step against the released code's plain form, and the gain by each optimization.

    python -m benchmarks.step                                   # ViT-S/16 and experiment=shapes
    python -m benchmarks.step --cases vit_small vit_base resnet50 shapes --batch 64 --device cuda

The images are random numbers that are already on the device; `benchmarks.data` measures data loading. The
column "of matrix rate" is the utilization of the device: the floating-point operations of our step (matrix
products, convolutions, attention; additional ones of the plain step do not count) per second, divided by the
rate that the device reaches in one large matrix product of the same precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import least_seconds, peak_extra_mib, report, wait_for
from benchmarks.plain import UNDO, undone
from dino_exp import machine
from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.training.graph import WARM_UP
from dino_exp.training.trainer import Trainer

PHOTOGRAPHS = ["head=dino", "crops=multicrop", "data.train_size=1024", "optimizer.warmup_epochs=0"]
CASES = {
    "vit_small": ["backbone=vit_small", *PHOTOGRAPHS],
    "vit_base": ["backbone=vit_base", *PHOTOGRAPHS],
    "resnet50": ["backbone=resnet50", *PHOTOGRAPHS],
    "shapes": ["experiment=shapes"],
}
"""Overrides of the default experiment; all but `shapes` have 2 x 224 + 8 x 96 pixels and K = 65,536."""

OF_TRANSFORMERS = (
    "fused attention",
    "one pass over both resolutions",
    "class token alone in the last block",
)


def make_trainer(case: str, batch: int | None, device: torch.device, precision: str, *more: str) -> Trainer:
    """Build a trainer for a case."""
    overrides = [*CASES[case], f"trainer.precision={precision}", *more]
    if case != "shapes" or batch:
        overrides.append(f"trainer.batch_size={batch or 8}")
    cfg = compose(overrides)
    return Trainer(cfg, build(cfg.data), device)


def random_views(trainer: Trainer) -> list[torch.Tensor]:
    """Return normally distributed crops for one step."""
    crops, batch = trainer.cfg.crops, trainer.cfg.trainer.batch_size
    sizes = [(2, crops.global_size), (crops.local_number, crops.local_size)]
    return [torch.randn(n * batch, 3, size, size, device=trainer.device) for n, size in sizes if n]


def first_step(trainer: Trainer, views: list[torch.Tensor]) -> None:
    """Make a step with the schedules of the first."""
    trainer.step = 0
    trainer.train_step(views)


def applies(name: str, case: str) -> bool:
    """Return whether a case uses an optimization."""
    if name == "channels-last":
        return case == "resnet50"
    return not (case == "resnet50" and name in OF_TRANSFORMERS)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Measure the operations per second of a square matrix product, 8192 wide on a GPU, 2048 on a CPU."""
    side = side or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = least_seconds({"product": lambda: torch.mm(a, b)}, 10, device)
    return 2 * side**3 / seconds["product"]


def operations(work: Callable[[], object]) -> int:
    """Count the floating-point operations of `work` in matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def measure(
    case: str, batch: int | None, device: torch.device, precision: str, repeats: int, keys: Sequence[str]
) -> list[dict[str, Any]]:
    """Measure a case in one precision: the plain form, ours, ours without each optimization, and with `keys`.

    The latter are those of a configuration that are true or false, as trainer.compile.
    """
    trainer = make_trainer(case, batch, device, precision)
    views = random_views(trainer)
    names = [name for name in UNDO if applies(name, case) and (name != "autocast" or precision != "fp32")]

    def without(*undo: str) -> Any:
        def step() -> None:
            with undone(trainer, undo):
                first_step(trainer, views)

        return step

    variants = {"plain": without(*names), "ours": without()}
    variants |= {f"without {name}": without(name) for name in names}
    for key in keys:
        other = make_trainer(case, batch, device, precision, f"{key}=true")
        variants[f"with {key}"] = partial(first_step, other, views)
        for _ in range(WARM_UP + 1):  # a graph is recorded after these
            first_step(other, views)
    seconds = least_seconds(variants, repeats, device)
    wait_for(device)
    size = trainer.cfg.trainer.batch_size
    flops = operations(variants["ours"])
    rates = {
        name: matrix_rate(device, machine.PRECISIONS[name] or torch.float32) for name in {"fp32", precision}
    }
    rows = []
    for name, variant in variants.items():
        used = "fp32" if name in ("plain", "without autocast") else precision
        rows.append(
            {
                "case": f"{case}, batch {size}",
                "precision": used,
                "step": name,
                "images/s": size / seconds[name],
                "against plain": seconds["plain"] / seconds[name],
                "ours is faster by": seconds[name] / seconds["ours"],
                "of matrix rate": flops / seconds[name] / rates[used],
                # a graph has allocated its memory already
                "step's peak MiB": None if "cuda_graph" in name else peak_extra_mib(variant, device),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=["vit_small", "shapes"])
    parser.add_argument("--batch", type=int, help="images per step; default 8, and 32 of `shapes`")
    parser.add_argument("--precisions", nargs="+", choices=list(machine.PRECISIONS), default=["fp32", "bf16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also with trainer.compile")
    parser.add_argument("--cuda-graph", action="store_true", help="also with trainer.cuda_graph")
    arguments = parser.parse_args()
    device = machine.choose_device(arguments.device)
    machine.keep_freed_memory()
    machine.use_threads(device, 0)
    keys = [f"trainer.{name}" for name in ("compile", "cuda_graph") if getattr(arguments, name)]
    rows = []
    for case in arguments.cases:
        for precision in arguments.precisions:
            rows += measure(case, arguments.batch, device, precision, arguments.repeats, keys)
    report("_".join(["step", *arguments.cases]), f"Training step on {device}, random images", rows, device)


if __name__ == "__main__":
    main()
