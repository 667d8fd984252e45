"""Training from JPEGs on the disk, against the rate of the step alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.data import make_photographs
from benchmarks.gpu.context import COMPILED, EAGER, TINY_RUN, WAYS, Context, attempt
from benchmarks.gpu.results import Row
from benchmarks.gpu.runs import Run, speeds
from dino_exp.machine import cores

BATCH, LOG_EVERY = 256, 25
SHARE, WAITING = 0.97, 0.05
"""Goals: the least share of the step's rate, and the greatest of waiting for data."""


def rows(context: Context) -> Iterator[Row]:
    """Yield images/s, its share of the step's, and the share of the time that it waited for data."""
    images = context.images or generated(context.scratch / "images", 4096 if context.is_gpu else 16)
    for way in (EAGER, COMPILED) if context.is_gpu else (EAGER,):
        yield {"run": f"vit_small, {way}"} | attempt(measured, context, images, way)


def generated(folder: Path, number: int) -> Path:
    """Write JPEGs in parallel, and return their folder."""
    folder.mkdir()
    with ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(make_photographs, folder, 8, first) for first in range(0, number, 8)]
        for part in parts:
            part.result()
    return folder


def measured(context: Context, images: Path, way: str) -> Row:
    """Train for some steps, and compare with the step alone if that section has been run."""
    words = ["experiment=paper_vits16", f"data.root={images}", *WAYS[way], "trainer.checkpoint_every=100000"]
    size = [f"trainer.batch_size={BATCH}", f"trainer.log_every={LOG_EVERY}"]
    run = Run(context, f"from_images_{way}", *words, *(size if context.is_gpu else TINY_RUN))
    ((rate, waiting),) = speeds([run], 0.9 * context.left)
    row: Row = {"images/s": rate, "waiting": waiting}
    case = f"vit_small, batch {BATCH}"
    alone = [
        each["images/s"]
        for each in context.results.rows("step")
        if (each["case"], each["step"]) == (case, way) and "images/s" in each
    ]
    if alone:
        row["of the step's"] = rate / alone[0]
        met = row["of the step's"] >= SHARE and waiting < WAITING
        row["goal"] = f"≥ {SHARE:.0%}, waiting < {WAITING:.0%}: {'met' if met else 'MISSED'}"
    return row
