"""The machine: what it has, and the rates that nothing on it can exceed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.gpu.context import NO_GPU, Context, attempt
from benchmarks.gpu.requirements import OPTIONAL, missing
from benchmarks.gpu.results import Row
from benchmarks.measure import least_seconds, processor, wait_for
from dino_exp.machine import cores

LAUNCHES = 1000
"""Fewer than the GPU's queue holds: a full one would have the host wait."""


def rows(context: Context) -> Iterator[Row]:
    """Yield `what`, its `value` and `unit`."""
    yield from inventory(context)
    for what, row in (*copy_rates(context), *matrix_rates(context), *launch_costs(context)):
        yield {"what": what} | row


def inventory(context: Context) -> Iterator[Row]:
    """Yield processor, memory, GPU and versions."""
    triton = "none" if missing(("triton",)) else version("triton")
    versions = {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "timm": version("timm"),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "Triton": triton,
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield {"what": "processor", "value": processor()}
    yield {"what": "cores", "value": cores()}
    yield {"what": "SMT", **attempt(simultaneous_threads)}
    yield {"what": "memory", "value": memory / 2**30, "unit": "GiB"}
    yield {"what": "/dev/shm", **attempt(shared_memory)}
    yield {"what": "versions", "value": ", ".join(f"{name} {number}" for name, number in versions.items())}
    yield {"what": "not installed", "value": ", ".join(missing(OPTIONAL)) or "–"}
    if not context.is_gpu:
        yield {"what": "GPU", **NO_GPU}
        return
    properties = torch.cuda.get_device_properties(context.device)
    yield {"what": "GPU", "value": f"{properties.name}, {properties.multi_processor_count} multiprocessors"}
    yield {"what": "its memory", "value": properties.total_memory / 2**30, "unit": "GiB"}
    yield {"what": "driver, clock now and at most, power limit", **attempt(driver)}


def simultaneous_threads() -> Row:
    """Return whether several hardware threads share a core, so that `cores` counts threads."""
    active = Path("/sys/devices/system/cpu/smt/active").read_text().strip()
    return {"value": "on" if active == "1" else "off"}


def shared_memory() -> Row:
    """Return the size of the memory through which loader processes pass batches."""
    return {"value": shutil.disk_usage("/dev/shm").total / 2**30, "unit": "GiB"}


def driver() -> Row:
    """Ask nvidia-smi."""
    wanted = "driver_version,clocks.sm,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return {"value": done.stdout.strip().splitlines()[0]}


def of_gpu(context: Context, unit: str, value: Callable[[], float]) -> Row:
    """Return a row with a value that only a GPU has."""
    return attempt(lambda: {"value": value(), "unit": unit}) if context.is_gpu else NO_GPU


def copy_rates(context: Context) -> Iterator[tuple[str, Row]]:
    """Yield the rates of copies, in bytes copied."""
    size = 2**28 if context.is_gpu else 2**16
    pageable = torch.ones(size, dtype=torch.uint8)
    pinned = pageable.pin_memory() if context.is_gpu else pageable
    there, other = (torch.empty_like(pageable, device=context.device) for _ in range(2))
    copies: dict[str, Callable[[], object]] = {
        "copy, pageable host to device": lambda: there.copy_(pageable),
        "copy, pinned host to device": lambda: there.copy_(pinned, non_blocking=True),
        "copy, device to pinned host": lambda: pinned.copy_(there, non_blocking=True),
        "copy, pageable to pinned host": lambda: pinned.copy_(pageable),
        "copy, device to device": lambda: other.copy_(there),
    }
    for name, seconds in least_seconds(copies, 5, context.device).items():
        yield name, {"value": size / seconds / 1e9, "unit": "GB/s"} if context.is_gpu else NO_GPU


def matrix_rates(context: Context) -> Iterator[tuple[str, Row]]:
    """Yield the rate of a large matrix product by type."""
    before = torch.get_float32_matmul_precision()

    def rate(dtype: torch.dtype, precision: str) -> Row:
        torch.set_float32_matmul_precision(precision)
        return {"value": context.matrix_rate(dtype) / 1e12, "unit": "TFLOP/s"}

    yield "matrix product, bf16", attempt(rate, torch.bfloat16, before)
    yield "matrix product, fp32 without TF32", attempt(rate, torch.float32, "highest")
    yield "matrix product, fp32 with TF32", attempt(rate, torch.float32, "high")
    torch.set_float32_matmul_precision(before)


def launch_costs(context: Context) -> Iterator[tuple[str, Row]]:
    """Yield what an operation costs that computes next to nothing."""
    one = torch.zeros(1, device=context.device)

    def launch() -> None:
        for _ in range(LAUNCHES):
            one.add_(1)

    def host_alone() -> float:
        least = float("inf")
        for _ in range(5):
            wait_for(context.device)
            start = time.perf_counter()
            launch()
            least = min(least, time.perf_counter() - start)
        return 1e6 * least / LAUNCHES

    def complete() -> float:
        return 1e6 * least_seconds({"": launch}, 5, context.device)[""] / LAUNCHES

    def replayed() -> float:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launch()
        return 1e6 * least_seconds({"": graph.replay}, 5, context.device)[""] / LAUNCHES

    launch()
    yield "operation on one number, host alone", of_gpu(context, "µs", host_alone)
    yield "operation on one number, until done", of_gpu(context, "µs", complete)
    yield "operation on one number, in a CUDA graph", of_gpu(context, "µs", replayed)
