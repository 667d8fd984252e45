"""Several runs of the default experiment on one GPU at once."""

from __future__ import annotations

import os
from collections.abc import Iterator

from benchmarks.gpu.context import EAGER, GRAPH, TINY_RUN, WAYS, Context, attempt
from benchmarks.gpu.results import Row
from benchmarks.gpu.runs import Run, speeds

PLANS = ((1, EAGER), (4, EAGER), (2, EAGER), (1, GRAPH), (4, GRAPH))


def rows(context: Context) -> Iterator[Row]:
    """Yield images/s of all runs together; each has its share of the cores, as in a sweep."""
    for count, way in PLANS if context.is_gpu else PLANS[:1]:
        yield {"runs at once": f"{count}, {way}"} | attempt(together, context, count, way)


def together(context: Context, count: int, way: str) -> Row:
    """Train `count` runs at once."""
    words = ["experiment=shapes", *WAYS[way], *(() if context.is_gpu else (*TINY_RUN, "data=shapes_tiny"))]
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
    found = speeds(runs, 0.9 * context.left)
    total = sum(rate for rate, _ in found)
    return {
        "images/s together": total,
        "images/s each": total / count,
        "waiting": max(waiting for _, waiting in found),
    }
