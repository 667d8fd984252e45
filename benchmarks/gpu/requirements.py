"""Packages that must be there, looked up without importing any of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

REQUIRED = (
    *("torch", "torchvision", "timm", "hydra-core", "omegaconf", "wandb", "rich", "matplotlib"),
    *("numpy", "pillow", "filelock", "safetensors"),
)
"""Distributions without which nothing trains; W&B's version is part of a run's summary."""
OPTIONAL = ("simplejpeg", "triton", "pytest", "pytest-timeout", "pytest-xdist")
"""Those without which something is slower or not checked: decoding, compilation, the suite's tests."""


def missing(names: tuple[str, ...]) -> list[str]:
    """Return those of the distributions that are not installed."""
    absent = []
    for name in names:
        try:
            version(name)
        except PackageNotFoundError:
            absent.append(name)
    return absent
