"""Several runs of the default experiment on one GPU at once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from benchmarks.gpu.context import EAGER, GRAPH, TINY_RUN, WAYS, Context, attempt
from benchmarks.gpu.results import Row
from benchmarks.gpu.runs import Run

PLANS = ((1, EAGER), (4, EAGER), (2, EAGER), (1, GRAPH), (4, GRAPH))


def rows(context: Context) -> Iterator[Row]:
    """Yield images/s of all runs together; each has its share of the cores, as in a sweep."""
    for count, way in PLANS:
        yield {"runs at once": f"{count}, {way}"} | attempt(together, context, count, way)


def together(context: Context, count: int, way: str) -> Row:
    """Train `count` runs of the same length at once."""
    size = ("trainer.max_steps=250", "trainer.log_every=50")
    words = ["experiment=demo", *WAYS[way], *(size if context.is_gpu else (*TINY_RUN, "data=shapes_tiny"))]
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // count)
    runs = [
        Run(
            context,
            f"{count}_{way}_{number}",
            *words,
            f"trainer.seed={number}",
            cores=set((cores * count)[number * each : (number + 1) * each]),
        )
        for number in range(count)
    ]
    until = time.monotonic() + 0.9 * context.left
    for run in runs:
        run.end(until - time.monotonic())
    speeds = [run.speed() for run in runs]
    total = sum(rate for rate, _ in speeds)
    return {
        "images/s together": total,
        "images/s each": total / count,
        "waiting": max(waiting for _, waiting in speeds),
    }
