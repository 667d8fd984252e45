"""Cost against number of processes, crops, prototypes, batch size, and size of the data set.

python -m benchmarks.scale processes          # a step in 1 and 2 processes, a thread each
python -m benchmarks.scale step               # a small network's step against crops, K and batch
python -m benchmarks.scale index              # 10^3 to 10^7 images: seconds and memory to start
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import in_new_process, least_seconds, report, status_kib
from benchmarks.step import make_trainer, random_views
from dino_exp.data import folder, image_lists
from dino_exp.data.loader import BatchOrder
from dino_exp.parallel import distributed
from dino_exp.parallel.processes import Processes

CPU = torch.device("cpu")
BATCH = 32
"""Images of the steps of `processes`, in all processes together."""


def processes(repeats: int) -> list[dict[str, Any]]:
    """Measure the same global batches in one process and in two with one thread each, and what limits two."""
    with tempfile.TemporaryDirectory() as temporary:
        meeting = Path(temporary) / "address"
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            of_both = [pool.submit(_in_turn, rank, meeting, repeats) for rank in range(2)]
            seconds = of_both[0].result()
    base = seconds[next(iter(seconds))]
    return [
        {
            "processes": name,
            "ms per step": 1e3 * spent,
            "images/s": BATCH / spent,
            "against one": base / spent,
        }
        for name, spent in seconds.items()
    ]


def _in_turn(rank: int, meeting: Path, repeats: int) -> dict[str, float]:
    """Return the seconds of each kind of step, in which both processes have the same variant at a time."""
    torch.set_num_threads(1)
    with distributed.joined(Processes(rank, 2, rank, 2, meeting)):
        network = ["backbone=vit_tiny", "crops.global_size=64", "crops.local_size=32"]
        trainer = make_trainer("shapes", BATCH, CPU, "fp32", *network)
        trainer.join()
        averaged, batch = trainer.student_of_all, random_views(trainer)
        assert isinstance(averaged, DistributedDataParallel)
        half = [view[: len(view) // 2] for view in batch]

        def train() -> None:
            trainer.step, trainer.student_of_all = 0, averaged
            trainer.train_step(half)

        def train_alone(views: Sequence[Tensor]) -> None:
            trainer.step, trainer.student_of_all = 0, trainer.student
            with mock.patch.object(distributed, "several", return_value=False):
                trainer.train_step(views)

        def together(step: Callable[[], None]) -> None:
            """Begin at the same time, and end with the slower one."""
            dist.barrier()
            step()
            dist.barrier()

        def train_unaveraged() -> None:
            with mock.patch.object(trainer, "_averaged_gradients", return_value=averaged.no_sync()):
                train()

        def train_in_one() -> None:
            if rank == 0:
                train_alone(batch)

        for _ in range(2):  # then the gradients' buckets are final, and those of a single process not in them
            train()
        variants = {
            "1": train_in_one,
            "2": train,
            "2, gradients not averaged (no_sync)": train_unaveraged,
            "2 that exchange nothing": lambda: train_alone(half),
        }
        return least_seconds({name: partial(together, step) for name, step in variants.items()}, repeats)


def step() -> list[dict[str, Any]]:
    """Measure the step of the default network, changing one number at a time."""
    changes = {
        "the default: 2 + 2 crops, K = 64, batch 32": [],
        "2 + 0 crops": ["crops.local_number=0"],
        "2 + 8 crops": ["crops.local_number=8"],
        "K = 4,096": ["head.out_dim=4096"],
        "K = 65,536": ["head.out_dim=65536"],
        "batch 64": ["trainer.batch_size=64"],
        "batch 128": ["trainer.batch_size=128"],
    }
    trainers = {name: make_trainer("shapes", None, CPU, "fp32", *more) for name, more in changes.items()}
    views = {name: random_views(trainer) for name, trainer in trainers.items()}

    def again(name: str) -> None:
        trainers[name].step = 0
        trainers[name].train_step(views[name])

    seconds = least_seconds({name: partial(again, name) for name in trainers}, repeats=10)
    base = seconds[next(iter(changes))]
    return [
        {
            "changed": name,
            "ms per step": 1e3 * spent,
            "images/s": trainers[name].cfg.trainer.batch_size / spent,
            "against the default": spent / base,
        }
        for name, spent in seconds.items()
    ]


def _start(listing: str, images: int) -> tuple[int, float, float, float]:
    image_lists.LOOKED_AT = 1  # the other files do not exist
    before = status_kib("VmRSS")
    start = time.perf_counter()
    source = folder.load(root=listing, val_root=None, channels=3, backend="fast").train
    listed = time.perf_counter() - start
    indexed = (status_kib("VmRSS") - before) / 2**10
    start = time.perf_counter()
    next(iter(BatchOrder(images, 512, 0, 0, 1)))
    ordered = time.perf_counter() - start
    return len(source), listed, indexed, ordered


def index(largest: int) -> list[dict[str, Any]]:
    """Measure reading a list of images, and drawing the first batch, in a new process for each size."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "first.jpg").touch()
        for exponent in range(3, largest + 1):
            images = 10**exponent
            listing = Path(temporary) / f"{exponent}.txt"
            with listing.open("w") as file:
                file.write("first.jpg\t0\n")
                for number in range(1, images):
                    file.write(f"n{number % 1000:08d}/n{number % 1000:08d}_{number}.JPEG\t{number % 1000}\n")
            length, listed, indexed, ordered = in_new_process(_start, str(listing), images)
            assert length == images
            rows.append(
                {
                    "images": f"{images:,}",
                    "list read, s": listed,
                    "its memory, MiB": indexed,
                    "bytes per image": indexed * 2**20 / images,
                    "order of an epoch, s": ordered,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["processes", "step", "index"])
    parser.add_argument("--repeats", type=int, default=20, help="rounds of `processes`, of a step each")
    parser.add_argument("--largest", type=int, default=7, help="greatest power of ten of `index`")
    arguments = parser.parse_args()
    if arguments.part == "processes":
        title = f"ViT-T/16, 64-pixel crops, batch {BATCH}"
        report("scale_processes", title, processes(arguments.repeats), CPU)
    elif arguments.part == "step":
        report("scale_step", "The default network's step, random images", step(), CPU)
    else:
        report("scale_index", "A text file of images", index(arguments.largest), CPU)


if __name__ == "__main__":
    main()
