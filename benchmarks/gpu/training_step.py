"""The training step by network and batch: eager, compiled, as a CUDA graph, and without each item in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.gpu.context import (
    COMPILED,
    COMPILED_GRAPH,
    EAGER,
    GRAPH,
    Context,
    attempt,
    release_memory,
)
from benchmarks.gpu.results import Row
from benchmarks.measure import least_seconds, wait_for
from benchmarks.plain import UNDO, undone
from benchmarks.step import applies, operations, random_views
from dino_exp.training.trainer import Trainer

LONG = ("trainer.epochs=1000", "optimizer.freeze_last_layer_epochs=0")
"""More steps than are measured, the first of which are like the others."""
WARM_UP = 6
"""Steps before, in which code is compiled and a graph is recorded."""
BURST = 4
"""Steps without waiting in between, as in training, where the host runs ahead of the device."""
PLAIN = "plain, fp32"
WITHOUT = ("one pass over both resolutions", "grouped clipping")
PLANS = (
    ("vit_small", 256, (COMPILED, GRAPH, COMPILED_GRAPH), WITHOUT),
    ("vit_small", 64, (COMPILED_GRAPH, GRAPH, COMPILED), (*WITHOUT, PLAIN)),
    ("vit_small", 512, (COMPILED,), WITHOUT),
    ("vit_base", 64, (COMPILED,), ()),
)
"""Network, batch, ways to run the step besides eager, items to do without; in the order of their worth."""
EAGER_GOAL = 1600
COMPILED_GOALS = {"H100": 2100, "H200": 2400}
"""Images/s of ViT-S/16 at batch 256, compiled by the name of the GPU."""
STRETCH = 0.4
"""The goal after those, as a share of the rate of one large matrix product."""


def rows(context: Context) -> Iterator[Row]:
    """Yield images/s, the share of the matrix rate, peak memory, and seconds before full speed."""
    rate = context.matrix_rate(torch.bfloat16)
    for case in ("vit_small", "vit_base"):
        counted = attempt(operations_per_image, context, case)
        yield {"case": case, "step": f"operations, {EAGER}"} | counted
        release_memory()
        for _, batch, ways, undo in (plan for plan in PLANS if plan[0] == case):
            for name, figures in variants(context, case, batch, ways, undo):
                row = {"case": f"{case}, batch {batch}", "step": name} | figures
                if "images/s" in row and name != PLAIN:
                    flops = counted.get("GFLOP per image", math.nan) * 1e9
                    row["of matrix rate"] = row["images/s"] * flops / rate
                if context.is_gpu and (case, batch) == ("vit_small", 256):
                    row |= goal(name, row, torch.cuda.get_device_name(context.device))
                yield row


def operations_per_image(context: Context, case: str) -> Row:
    """Count the floating-point operations of our eager step."""
    trainer = context.trainer(case, 8, EAGER)
    views = random_views(trainer)
    gflop = operations(lambda: trainer.train_step(views)) / 1e9
    return {"GFLOP per image": gflop / trainer.cfg.trainer.batch_size}


def goal(name: str, row: Row, gpu: str) -> Row:
    """Return the goal of a step, and whether it is met; nothing for a step without one."""
    wanted = EAGER_GOAL if name == EAGER else None
    if name == COMPILED:
        wanted = next((goal for part, goal in COMPILED_GOALS.items() if part in gpu), None)
    if wanted is None:
        return {}
    reached = row.get("images/s", 0.0) >= wanted
    return {"goal": f"{wanted:,} {'met' if reached else 'MISSED'}"}


def variants(
    context: Context, case: str, batch: int, ways: Sequence[str], undo: Sequence[str]
) -> Iterator[tuple[str, Row]]:
    """Yield the figures of each variant by its name."""
    ours = math.nan
    for name, figures in eager(context, case, batch, undo):
        ours = figures.get("ms per step", math.nan) if name == EAGER else ours
        yield name, figures
    release_memory()
    for way in ways:
        figures = attempt(figures_of_new, context, case, batch, way)
        release_memory()
        if "ms per step" in figures:
            figures["eager is faster by"] = figures["ms per step"] / ours
        yield way, figures


def eager(context: Context, case: str, batch: int, undo: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield the figures of our eager step, and of it without each item, with which it takes turns."""
    start = time.perf_counter()
    trainer = context.trainer(case, batch, EAGER, *LONG)
    yield EAGER, attempt(figures_of, trainer, start)
    for item in undo:
        names = [each for each in UNDO if applies(each, case)] if item == PLAIN else [item]
        figures = attempt(figures_without, trainer, names)
        yield item if item == PLAIN else f"without {item}", figures


def burst(trainer: Trainer, views: Sequence[Tensor]) -> Callable[[], None]:
    """Return some steps in a row, each with the schedules of the next step."""

    def steps() -> None:
        for _ in range(BURST):
            trainer.train_step(views)

    return steps


def figures_of_new(context: Context, case: str, batch: int, way: str) -> Row:
    """Measure the steps of a trainer that nothing else needs."""
    start = time.perf_counter()
    return figures_of(context.trainer(case, batch, way, *LONG), start)


def figures_of(trainer: Trainer, start: float) -> Row:
    """Measure the steps of a new trainer, which has been built since `start` of `time.perf_counter`."""
    views, device = random_views(trainer), trainer.device
    for _ in range(WARM_UP):
        trainer.train_step(views)
    wait_for(device)
    ready = time.perf_counter() - start
    steps = burst(trainer, views)
    seconds = least_seconds({"ours": steps}, 3, device)["ours"] / BURST
    return speed(trainer, seconds) | {"built and warm s": ready} | peaks(steps, device)


def figures_without(trainer: Trainer, names: Sequence[str]) -> Row:
    """Measure the steps of a trainer that has been warmed up, without some of our items."""
    if absent := [name for name in names if name not in UNDO]:
        return {"note": f"not available: {', '.join(absent)}"}
    views = random_views(trainer)
    steps = burst(trainer, views)

    def without() -> None:
        with undone(trainer, names):
            steps()

    seconds = least_seconds({"ours": steps, "without": without}, 3, trainer.device)
    ratio = {"eager is faster by": seconds["without"] / seconds["ours"]}
    return speed(trainer, seconds["without"] / BURST) | ratio | peaks(without, trainer.device)


def speed(trainer: Trainer, seconds: float) -> Row:
    """Return images/s and ms of a step that takes `seconds`."""
    return {"images/s": trainer.cfg.trainer.batch_size / seconds, "ms per step": 1e3 * seconds}


def peaks(work: Callable[[], object], device: torch.device) -> Row:
    """Return the GPU's peak memory during `work`: of tensors, and what PyTorch had reserved for them."""
    if device.type != "cuda":
        return {}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    wait_for(device)
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return {"peak MiB": allocated / 2**20, "reserved MiB": reserved / 2**20}
