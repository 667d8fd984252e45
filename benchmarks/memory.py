"""Prediction of a run's peak memory and time per epoch.

    python -m benchmarks.memory experiment=paper_vits16 data.root=/imagenet/train trainer.device=cuda
    python -m benchmarks.memory --check ...       # also measures the full batch, to see the error

Takes the overrides of `train.py`, and runs a few steps with two small batch sizes on the configured device,
each in a separate process. Memory and time grow linearly with the batch, so two points give the rest. Measure
on the kind of machine that the run is for.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.measure import in_new_process, report, wait_for
from dino_exp import machine
from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.errors import UserError
from dino_exp.training.trainer import Trainer

STEPS = 4


@dataclass(frozen=True)
class Cost:
    """Cost of training steps with one batch size."""

    memory_mib: float
    step_seconds: float
    loading_seconds: float
    """Per image, in one loader process."""


def cost_of(overrides: list[str], batch: int) -> Cost:
    """Measure a few steps with `batch` images, in this process."""
    cfg = compose([*overrides, f"trainer.batch_size={batch}"])
    device = machine.choose_device(cfg.trainer.device)
    machine.keep_freed_memory()
    machine.use_threads(device, machine.choose_workers(cfg.trainer.num_workers, device))
    trainer = Trainer(cfg, build(cfg.data), device)
    seconds = []
    loading = []
    for step in range(STEPS):
        start = time.perf_counter()
        batch_of_crops = trainer.crop_batches[0, list(range(batch))]
        loading.append(time.perf_counter() - start)
        wait_for(device)
        start = time.perf_counter()
        # the last is a logged step, whose diagnostics need more memory
        trainer.train_step(trainer.augmented(batch_of_crops), observe=step == STEPS - 1)
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return Cost(machine.peak_memory_mib(device), min(seconds[1:]), min(loading) / batch)


def extrapolated(small: float, large: float, sizes: tuple[int, int], batch: int) -> float:
    """Return the value at `batch` of the line through the values at the two `sizes`."""
    slope = (large - small) / (sizes[1] - sizes[0])
    return small + slope * (batch - sizes[0])


def main() -> None:
    """Predict, and with `--check` compare with a measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="as for train.py")
    parser.add_argument(
        "--processes", type=int, default=1, help="number of processes of the run, which share the batch"
    )
    parser.add_argument("--check", action="store_true", help="measure the full batch too")
    arguments = parser.parse_args()
    try:
        cfg = compose(arguments.overrides)
        batch = cfg.trainer.batch_size // arguments.processes
        if batch < 4:
            raise UserError(f"{batch} images per process: too few for a prediction; start the run instead.")
        sizes = (batch // 4, batch // 2) if batch <= 64 else (8, 24)
        small, large = (in_new_process(cost_of, arguments.overrides, size) for size in sizes)
        checked = in_new_process(cost_of, arguments.overrides, batch) if arguments.check else None
    except UserError as error:
        parser.exit(2, f"{error}\n")
    device = machine.choose_device(cfg.trainer.device)
    images = len(build(cfg.data).train)
    workers = machine.choose_workers(cfg.trainer.num_workers, device)

    def epoch_minutes(step_seconds: float, loading_seconds: float) -> float:
        loading = loading_seconds * batch / max(1, workers)
        per_step = max(step_seconds, loading) if workers else step_seconds + loading
        return per_step * (images // cfg.trainer.batch_size) / 60

    memory = extrapolated(small.memory_mib, large.memory_mib, sizes, batch)
    seconds = extrapolated(small.step_seconds, large.step_seconds, sizes, batch)
    loading = min(small.loading_seconds, large.loading_seconds)
    costs = {"predicted": Cost(memory, seconds, loading)}
    if checked:
        costs["measured"] = checked
    rows: list[dict[str, Any]] = []
    for name, cost in costs.items():
        minutes = epoch_minutes(cost.step_seconds, cost.loading_seconds)
        row = {"peak MiB": cost.memory_mib, "s per step": cost.step_seconds, "minutes per epoch": minutes}
        rows.append({"": name} | row)
    if checked:
        ratios = {key: rows[0][key] / rows[1][key] for key in rows[0] if key}
        rows.append({"": "predicted / measured"} | ratios)
    title = (
        f"{cfg.backbone.name}, {batch} images per process, {device}, from batches of {sizes[0]}, {sizes[1]}"
    )
    report("memory", title, rows, torch.device("cpu") if device.type == "cpu" else device)


if __name__ == "__main__":
    main()
