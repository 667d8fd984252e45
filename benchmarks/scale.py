"""Cost against number of processes, crops, prototypes, batch size, and size of the data set.

python -m benchmarks.scale processes          # the default run under 1 and 2 processes, a thread each
python -m benchmarks.scale step               # a small network's step against crops, K and batch
python -m benchmarks.scale index              # 10^3 to 10^7 images: seconds and memory to start
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import in_new_process, least_seconds, report, status_kib
from benchmarks.step import make_trainer, random_views
from dino_exp.data import folder, image_lists
from dino_exp.data.loader import BatchOrder

TRAIN = Path(__file__).parents[1] / "train.py"
CPU = torch.device("cpu")


def processes(steps: int) -> list[dict[str, Any]]:
    """Measure images/s of the same global batches in one and in two processes with one thread each."""
    rows: list[dict[str, Any]] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as outputs:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            network = ["backbone=vit_tiny", "crops.global_size=64", "crops.local_size=32"]
            length = ["trainer.batch_size=32", "trainer.precision=fp32", f"trainer.max_steps={steps}"]
            where = ["tracker=none", f"output_root={outputs}"]
            command = [sys.executable, *torchrun, str(TRAIN), *network, *length, *where]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            (summary,) = Path(outputs).glob("*/*/summary.json")
            speed = json.loads(summary.read_text())["images_per_second"]
        against = speed / rows[0]["images/s"] if rows else 1.0
        rows.append({"processes": str(count), "images/s": speed, "against one": against})
    return rows


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
    trainers = {name: make_trainer("demo", None, CPU, "fp32", *more) for name, more in changes.items()}
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
    parser.add_argument("--steps", type=int, default=60, help="steps of each run of `processes`")
    parser.add_argument("--largest", type=int, default=7, help="greatest power of ten of `index`")
    arguments = parser.parse_args()
    if arguments.part == "processes":
        report("scale_processes", "ViT-T/16, 64-pixel crops, batch 32", processes(arguments.steps), CPU)
    elif arguments.part == "step":
        report("scale_step", "The default network's step, random images", step(), CPU)
    else:
        report("scale_index", "A text file of images", index(arguments.largest), CPU)


if __name__ == "__main__":
    main()
