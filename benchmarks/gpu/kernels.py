"""What one step asks of the device: kernels, launches, copies, and how long the device is busy with them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.context import (
    COMPILED,
    COMPILED_GRAPH,
    EAGER,
    GRAPH,
    NO_GPU,
    Context,
    attempt,
    release_memory,
)
from benchmarks.gpu.results import Row
from benchmarks.gpu.training_step import LONG, WARM_UP
from benchmarks.measure import wait_for
from dino_exp.data.loader import CropBatch

PLANS = ((64, EAGER), (256, EAGER), (64, COMPILED), (64, GRAPH), (256, COMPILED), (64, COMPILED_GRAPH))
TOP = 25
"""Kernels that the file lists for each variant, those with the most time."""


def rows(context: Context) -> Iterator[Row]:
    """Yield counts of one step with its augmentation; not beside timings, as profiling slows launches."""
    for batch, way in PLANS:
        row = attempt(counts, context, batch, way)
        yield {"case": f"vit_small, batch {batch}", "step": way} | row
        release_memory()


def counts(context: Context, batch: int, way: str) -> Row:
    """Profile one step, from the loader's bytes on."""
    trainer = context.trainer("vit_small", batch, way, *LONG)
    crops = trainer.crop_batches[0, list(range(trainer.cfg.trainer.batch_size))]
    if context.is_gpu:
        crops = CropBatch(*(part.pin_memory() for part in crops))
    for _ in range(WARM_UP):
        trainer.train_step(trainer.augmented(crops))
    wait_for(context.device)
    activity = ProfilerActivity.CUDA if context.is_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        trainer.train_step(trainer.augmented(crops))
        wait_for(context.device)
    path = context.scratch / "trace.json"
    profiler.export_chrome_trace(str(path))
    events = read_trace(path)
    return figures(events) if any(event["cat"] == "kernel" for event in events) else NO_GPU


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Return the events of a Chrome trace that have a category and a duration."""
    trace = json.loads(path.read_text(errors="replace"))
    return [event for event in trace["traceEvents"] if "cat" in event and "dur" in event]


def figures(events: Sequence[dict[str, Any]]) -> Row:
    """Count the events of a trace, whose times are in µs."""
    by_category = Counter(event["cat"] for event in events)
    calls = [event["name"] for event in events if event["cat"] in ("cuda_runtime", "cuda_driver")]
    copies = [event["name"] for event in events if event["cat"] == "gpu_memcpy" and "HtoD" in event["name"]]
    work = [event for event in events if event["cat"] in ("kernel", "gpu_memcpy", "gpu_memset")]
    by_kernel: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "kernel":
            by_kernel[event["name"]].append(event["dur"])
    longest = sorted(by_kernel.items(), key=lambda item: -sum(item[1]))[:TOP]
    return {
        "kernels": by_category["kernel"],
        "kernel launches": sum("LaunchKernel" in name for name in calls),
        "graph launches": sum("GraphLaunch" in name for name in calls),
        "copies to the device": len(copies),
        "of these pageable": sum("Pageable" in name for name in copies),
        "waits for a stream": sum("StreamSynchronize" in name for name in calls),
        "device busy ms": busy(work) / 1e3,
        "device from first to last ms": span(work) / 1e3,
        "longest": [
            {"kernel": name[:120], "times": len(spent), "ms": sum(spent) / 1e3} for name, spent in longest
        ],
    }


def busy(events: Sequence[dict[str, Any]]) -> float:
    """Return the time in which at least one event runs."""
    total, end = 0.0, float("-inf")
    for event in sorted(events, key=lambda event: event["ts"]):
        last = event["ts"] + event["dur"]
        total += max(0.0, last - max(end, event["ts"]))
        end = max(end, last)
    return total


def span(events: Sequence[dict[str, Any]]) -> float:
    """Return the time from the first event's start to the last one's end."""
    return max(event["ts"] + event["dur"] for event in events) - min(event["ts"] for event in events)
