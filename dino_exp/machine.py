"""What there is to train on: device, cores, precision, and the versions that made a result."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dino_exp.errors import UserError

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def cores() -> int:
    """CPU cores that this process may use, as the container, SLURM or OMP_NUM_THREADS allows."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for variable in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        given = os.environ.get(variable, "")
        allowed = min(allowed, int(given)) if given.isdigit() and int(given) else allowed
    return allowed


def choose_device(wanted: str) -> torch.device:
    """The device of `trainer.device`; a `UserError` if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, present in there.items() if present)
    if not there[wanted]:
        present = ", ".join(name for name, is_there in there.items() if is_there)
        raise UserError(f"trainer.device = {wanted}: this machine has no such device; there are: {present}.")
    return torch.device(wanted)


def choose_precision(wanted: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of `trainer.precision`; None is plain float32."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("trainer.precision = fp16: the CPU has no fp16 training; use bf16 or fp32.")
    return PRECISIONS[wanted]


def choose_workers(wanted: int | None, device: torch.device) -> int:
    """Loader processes: those asked for; else none if the CPU trains, or all cores but one for a GPU."""
    if wanted is not None:
        return wanted
    return 0 if device.type == "cpu" else max(0, min(16, cores() - 1))


def use_threads(device: torch.device, workers: int) -> None:
    """Give training the cores that the loader leaves; too many threads cost far more than too few."""
    torch.set_num_threads(max(1, cores() - workers) if device.type == "cpu" else max(1, cores() // 4))


def peak_memory_mib(device: torch.device) -> float:
    """Most memory in use so far: of the tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    scale = 2**20 if platform.system() == "Darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware and git revision, for `summary.json`."""
    packages = ("torch", "torchvision", "timm", "numpy", "hydra-core", "wandb")
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or device.type
    )
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "device": f"{device.type} ({name}), {cores()} cores, {torch.get_num_threads()} threads",
        **git_revision(),
    }


def git_revision() -> dict[str, Any]:
    """The commit of the code that runs, and whether files differ from it; nulls outside a checkout."""

    def git(*words: str) -> str | None:
        here = Path(__file__).parent
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"git_revision": revision, "git_dirty": bool(changes) if changes is not None else None}
