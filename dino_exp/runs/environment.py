"""The software and hardware that a result comes from."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from dino_exp.machine import cores
from dino_exp.runs.revision import git_revision


def environment(device: torch.device) -> dict[str, Any]:
    """Return package versions, hardware and git revision, for `summary.json`."""
    packages = ("torch", "torchvision", "timm", "numpy", "hydra-core", "wandb")
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else platform.processor() or device.type
    return {
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "device": f"{device.type} ({name}), {cores()} cores, {torch.get_num_threads()} threads",
        **git_revision(),
    }
