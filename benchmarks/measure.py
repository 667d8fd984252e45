"""Measurement and output of the benchmarks: variants in turn within one process, the least time of each."""

from __future__ import annotations

import ctypes
import datetime
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.table import Table

from dino_exp.console import Console
from dino_exp.runs import environment

OUTPUTS = Path("outputs/benchmarks")
Result = TypeVar("Result")


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def least_seconds(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | None = None
) -> dict[str, float]:
    """Return the least seconds of each variant over `repeats` rounds, each of which runs every variant once.

    In rounds, so that other load on the machine affects all variants; the least, as it is least affected by
    it. Each variant runs once before, unmeasured.
    """
    device = device or torch.device("cpu")
    least = dict.fromkeys(variants, float("inf"))
    for turn in range(repeats + 1):
        for name, variant in variants.items():
            wait_for(device)
            start = time.perf_counter()
            variant()
            wait_for(device)
            if turn:
                least[name] = min(least[name], time.perf_counter() - start)
    return least


def in_new_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a new process, which shares neither memory nor its peak with this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_extra_mib(work: Callable[[], object], device: torch.device) -> float | None:
    """Return the peak memory of `work` beyond what was allocated before, in MiB; None if it is unknown.

    On a CPU this is resident memory of the process, whose peak Linux can reset.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # give back what earlier work left in the allocator
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before_kib = status_kib("VmRSS")
    work()
    return (status_kib("VmHWM") - before_kib) / 2**10


def status_kib(field: str) -> int:
    """Return a field of /proc/self/status in KiB (Linux): VmRSS resident memory, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def as_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return `rows` as a table for the console; a column of words is on the left."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        words = any(isinstance(row.get(column), str) for row in rows)
        table.add_column(column, justify="left" if words else "right")
    for row in rows:
        table.add_row(*(cell(row.get(column)) for column in columns))
    return table


def report(name: str, title: str, rows: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Print `rows` as a table, and write them as JSON to outputs/benchmarks/<name>.json."""
    console = Console(width=160)
    console.print(as_table(title, rows))
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    path = OUTPUTS / f"{name}.json"
    content = {
        "benchmark": name,
        "title": title,
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "environment": environment.environment(device),
        "rows": list(rows),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
    console.print(f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads -> {path}\n")


def cell(value: Any) -> str:
    """Format with three significant digits; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def processor() -> str:
    """Return the processor's name, or its architecture if the name is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
