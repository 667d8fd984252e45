"""What runs on one machine gain by sharing their batches (`dino_exp/data/shared_batches.py`).

    python -m benchmarks.shared_batches                        # on synthetic photographs
    python -m benchmarks.shared_batches --images FOLDER        # on yours

`shares` is what one run of one thread spends on its batches, their augmentation, and the step. `together` has
1, 2, 4 and 8 processes of one thread train at one time, each for itself and sharing, in turn. What counts
there are CPU seconds of all processes per image: where the cores are busy, images/s are their inverse, and
other programs on the machine do not change them. "Batches" trains no network: all that a machine's cores do
for a GPU. Each measurement is written when it is made, and is not repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.data import photographs
from benchmarks.measure import OUTPUTS, report
from dino_exp import machine
from dino_exp.config.compose import compose
from dino_exp.config.targets import images_of
from dino_exp.data.loader import BatchOrder, batches
from dino_exp.data.shared_batches import SharedBatches
from dino_exp.training.trainer import Trainer

CPU = torch.device("cpu")
SHORT = ["optimizer.warmup_epochs=0", "tracker=none"]
FOLDER = ["data=image_folder", "data.root={folder}"]
SHARES = {  # generated images stand for CIFAR-10: both are 32 pixels, and in memory
    "shapes": ["experiment=shapes"],
    "CIFAR-10's ResNet-18": ["experiment=cifar10_resnet18", "trainer.batch_size=16", "data=shapes"],
    "ViT-S/16, 2 x 224 + 8 x 96, JPEG": [
        *("backbone=vit_small", "head=dino", "crops=multicrop", "augment=released", "trainer.batch_size=4"),
        *FOLDER,
    ],
}
TOGETHER = {
    "batches of 2 x 224 + 8 x 96, JPEG": [
        *("crops=multicrop", "augment=released", "backbone=vit_tiny", "head=micro", "trainer.batch_size=8"),
        *FOLDER,
    ],
    "small network, 2 x 32 + 2 x 16, JPEG": ["experiment=shapes", "trainer.batch_size=16", *FOLDER],
    "shapes": ["experiment=shapes"],
}
RUNS = (1, 2, 4, 8)


@lru_cache(maxsize=1)
def trainer_of(case: str, folder: Path) -> Trainer:
    words = (SHARES | TOGETHER)[case]
    cfg = compose([*(word.format(folder=folder) for word in words), *SHORT])
    return Trainer(cfg, images_of(cfg.data), CPU)


def order_of(trainer: Trainer, steps: int) -> BatchOrder:
    return BatchOrder(len(trainer.splits.train), trainer.cfg.trainer.batch_size, 0, 0, steps)


def shares(case: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Return the shares of a run's parts in its CPU time, medians over steps."""
    trainer = trainer_of(case, folder)
    spent: dict[str, list[float]] = {"batches": [], "augmentation": [], "step": []}
    at = [0.0]

    def lap(part: str) -> None:
        at.append(time.process_time())
        spent[part].append(at[-1] - at[-2])

    for where in order_of(trainer, repeats + 1):
        at.append(time.process_time())
        batch = trainer.crop_batches[where]
        lap("batches")
        views = trainer.augmented(batch)
        lap("augmentation")
        trainer.train_step(views)
        lap("step")
    seconds = {part: median(each[1:]) for part, each in spent.items()}
    total = sum(seconds.values())
    ms = 1e3 * total / trainer.cfg.trainer.batch_size
    of_all = {f"{part}, %": 100 * each / total for part, each in seconds.items()}
    return {"run": case, "CPU ms per image": ms, **of_all}


def together(case: str, folder: Path, runs: int, steps: int, sharing: bool) -> list[float]:
    """Return CPU seconds of all runs, and the time of the slowest, both per image of one run."""
    trainer = trainer_of(case, folder)
    if case == "shapes":
        trainer.crop_batches[0, [0]]  # draws the images, once
    context = multiprocessing.get_context("fork")
    begin, spent = context.Barrier(runs), context.SimpleQueue()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as memory:
        arguments = (trainer, case, steps, memory if sharing else None, begin, spent)
        processes = [context.Process(target=_train, args=arguments) for _ in range(runs)]
        for process in processes:
            process.start()
        found = [spent.get() for _ in processes]
        for process in processes:
            process.join()
    images = steps * trainer.cfg.trainer.batch_size
    return [sum(cpu for cpu, _ in found) / images, max(wall for _, wall in found) / images]


def _train(trainer: Trainer, case: str, steps: int, memory: str | None, begin: Any, spent: Any) -> None:
    torch.set_num_threads(1)
    order, shared = order_of(trainer, steps), None
    if memory is not None:
        layout = trainer.crop_batches.layout(order.part)
        shared = SharedBatches(Path(memory), "benchmark", layout, 0, steps)
    begin.wait()
    cpu, wall = time.process_time(), time.perf_counter()
    for batch in batches(trainer.crop_batches, order, 0, pin_memory=False, shared=shared):
        if not case.startswith("batches"):
            trainer.train_step(trainer.augmented(batch))
    spent.put((time.process_time() - cpu, time.perf_counter() - wall))
    begin.wait()
    if shared is not None:
        shared.leave()


def cost_alone(batches: int = 1000) -> dict[str, Any]:
    """Return what a batch costs a run that could share and is alone."""
    with tempfile.TemporaryDirectory() as memory:
        shared = SharedBatches(Path(memory), "benchmark", [], 0, batches)
        nothing = [np.empty(0, np.int64)]
        began = time.process_time()
        for step in range(batches):
            shared.delivered(step, shared.get(step, lambda _: nothing)[1])
        spent = time.process_time() - began
        shared.leave()
    return {"a run that is alone": "cost of being able to share", "CPU µs per batch": 1e6 * spent / batches}


def compared(case: str, runs: int, found: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Return a row: medians of the ratios of neighboring measurements."""
    pairs = list(zip(found["alone"], found["sharing"], strict=True))
    return {
        "runs": f"{runs} x {case}",
        "CPU ms per image and run, alone": 1e3 * median(alone[0] for alone, _ in pairs) / runs,
        "sharing": 1e3 * median(sharing[0] for _, sharing in pairs) / runs,
        "images/s per CPU second, times": median(alone[0] / sharing[0] for alone, sharing in pairs),
        "images/s by the clock, times": median(alone[1] / sharing[1] for alone, sharing in pairs),
    }


def kept(path: Path, key: str, measure: Callable[[], Any]) -> Any:
    """Return a measurement that a file has, or make it and add it."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if key not in known:
        known[key] = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(known, indent=1))
    return known[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photographs; default: synthetic ones")
    parser.add_argument("--steps", type=int, default=12, help="steps of a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", type=int, nargs="+", default=RUNS)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(TOGETHER))))
    arguments = parser.parse_args()
    machine.keep_freed_memory()
    torch.set_num_threads(1)
    made = OUTPUTS / "shared_batches.measured.json"
    report("shared_batches_alone", "A run alone", [kept(made, "alone", cost_alone)], CPU)
    with photographs(arguments.images) as folder:
        rows = [kept(made, case, partial(shares, case, folder, arguments.repeats)) for case in SHARES]
        report("shared_batches_shares", "What one run spends, one thread", rows, CPU)
        rows = []
        for case in [list(TOGETHER)[number] for number in arguments.cases]:
            for runs in arguments.runs:
                found: dict[str, list[list[float]]] = {"alone": [], "sharing": []}
                for repeat in range(arguments.repeats):
                    for how, each in found.items():
                        key = f"{runs} x {case}, {how}, {arguments.steps} steps, {repeat}"
                        wanted = (case, folder, runs, arguments.steps, how == "sharing")
                        each.append(kept(made, key, partial(together, *wanted)))
                rows.append(compared(case, runs, found))
        report("shared_batches", "Runs at one time, one thread each", rows, CPU)


if __name__ == "__main__":
    main()
