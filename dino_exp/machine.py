"""What to train on: device, precision, CPU cores, loader processes and threads."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from dataclasses import dataclass

import torch

from dino_exp.errors import UserError
from dino_exp.parallel.processes import Processes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
LARGEST_KEPT = 32 * 2**20
"""Bytes; the most that glibc takes for M_MMAP_THRESHOLD."""
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def cores() -> int:
    """Return the number of CPU cores for this process and its loader: its share of the allowed ones.

    The affinity mask and SLURM limit them. OMP_NUM_THREADS is ignored here, because torchrun sets it to 1 for
    several processes however many cores there are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = min(allowed, _number("SLURM_CPUS_PER_TASK") or allowed)
    # where SLURM itself started the processes of this machine, each already has cores of its own
    tasks_here = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
    return allowed if tasks_here != "1" else max(1, allowed // Processes.from_environment().local_count)


def _number(variable: str) -> int | None:
    """Return the positive whole number in an environment variable; None if it has none."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) else None


@dataclass(frozen=True)
class Hardware:
    """What a run on this machine can use, in numbers."""

    cores: int
    gpu: str | None = None
    """Name of the GPU; None for a machine without CUDA."""
    gpu_mib: int = 0
    """Its memory in MiB."""

    @classmethod
    def here(cls) -> Hardware:
        """Return what this machine has."""
        if not torch.cuda.is_available():
            return cls(cores())
        device = torch.cuda.get_device_properties(0)
        return cls(cores(), device.name, device.total_memory >> 20)


def choose_device(wanted: str, key: str = "trainer.device") -> torch.device:
    """Return the device for the value `wanted` of `key`; each of several processes gets its own GPU.

    `auto` is the first available of cuda, mps and cpu. Raises `UserError` if the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, present in available.items() if present)
    if not available[wanted]:
        names = " or ".join(name for name, present in available.items() if present)
        raise UserError(f"{key} = {wanted}: this machine has no such device; use {names}.")
    processes = Processes.from_environment()
    if processes.count == 1 or wanted == "cpu":
        return torch.device(wanted)
    if wanted == "mps":
        raise UserError(f"{key} = mps: works in one process only; start without torchrun, or use cpu.")
    if processes.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{key} = cuda: LOCAL_RANK={processes.local_rank} on a machine with "
            f"{torch.cuda.device_count()} GPUs; start at most one process per GPU (--nproc-per-node)."
        )
    device = torch.device("cuda", processes.local_rank)
    torch.cuda.set_device(device)
    return device


def choose_precision(wanted: str, device: torch.device, key: str = "trainer.precision") -> torch.dtype | None:
    """Return the autocast type for the value `wanted` of `key`; None is float32 without autocast.

    `auto` is bf16 on a GPU that supports it and fp32 elsewhere. Raises `UserError` for fp16 on a CPU.
    """
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UserError(f"{key} = fp16: the CPU has no fp16; use bf16 or fp32.")
    return PRECISIONS[wanted]


def choose_workers(wanted: int | None, device: torch.device) -> int:
    """Return the number of loader processes: `wanted`, else 0 on a CPU, or for a GPU all cores but one."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else max(0, min(16, cores() - 1))


def use_threads(device: torch.device, workers: int) -> None:
    """Set torch's number of threads to the cores that the loader leaves, at most OMP_NUM_THREADS.

    Too many threads cost far more than too few.
    """
    threads = max(1, cores() - workers) if device.type == "cpu" else max(1, cores() // 4)
    torch.set_num_threads(min(threads, _number("OMP_NUM_THREADS") or threads))


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for later ones, in this process and those that it forks.

    By default it returns large pieces to the system, which then clears every page of the next tensor. Nothing
    is changed on other systems, and where a variable that begins with MALLOC says what is wanted.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far in MiB: of the tensors on a GPU, of the entire process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    scale = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
