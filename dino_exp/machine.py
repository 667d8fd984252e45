"""What there is to train on: device, cores, precision, and the versions that made a result."""

from __future__ import annotations

import os
import platform
import resource

import torch

from dino_exp.errors import UserError
from dino_exp.parallel.processes import Processes

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def cores() -> int:
    """CPU cores for this process and its loader: its share of what the container or SLURM allows.

    OMP_NUM_THREADS does not count, because torchrun sets it to 1 for several processes, whatever there is.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = min(allowed, _number("SLURM_CPUS_PER_TASK") or allowed)
    # where SLURM itself started this machine's processes, each has been given cores of its own
    tasks_here = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
    return allowed if tasks_here != "1" else max(1, allowed // Processes.of().local_count)


def _number(variable: str) -> int | None:
    """The positive whole number in an environment variable, if there is one."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) else None


def choose_device(wanted: str, key: str = "trainer.device") -> torch.device:
    """The device that `key` wants, of several processes this one's own; a `UserError` if not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, present in there.items() if present)
    if not there[wanted]:
        present = ", ".join(name for name, is_there in there.items() if is_there)
        raise UserError(f"{key} = {wanted}: this machine has no such device; there are: {present}.")
    processes = Processes.of()
    if processes.count == 1 or wanted == "cpu":
        return torch.device(wanted)
    if wanted == "mps":
        raise UserError(f"{key} = mps: takes one process; start without torchrun, or use cpu.")
    if processes.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{key} = cuda: LOCAL_RANK={processes.local_rank} on a machine with "
            f"{torch.cuda.device_count()} GPUs; start at most one process per GPU (--nproc-per-node)."
        )
    device = torch.device("cuda", processes.local_rank)
    torch.cuda.set_device(device)
    return device


def choose_precision(wanted: str, device: torch.device, key: str = "trainer.precision") -> torch.dtype | None:
    """The autocast type that `key` wants; None is plain float32."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UserError(f"{key} = fp16: the CPU has no fp16; use bf16 or fp32.")
    return PRECISIONS[wanted]


def choose_workers(wanted: int | None, device: torch.device) -> int:
    """Loader processes: those asked for; else none if the CPU trains, or all cores but one for a GPU."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else max(0, min(16, cores() - 1))


def use_threads(device: torch.device, workers: int) -> None:
    """Give training the cores that the loader leaves; too many threads cost far more than too few.

    OMP_NUM_THREADS says how many at most.
    """
    threads = max(1, cores() - workers) if device.type == "cpu" else max(1, cores() // 4)
    torch.set_num_threads(min(threads, _number("OMP_NUM_THREADS") or threads))


def peak_memory_mib(device: torch.device) -> float:
    """Most memory in use so far: of the tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    scale = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
