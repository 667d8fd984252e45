"""Helpers for the tests of all formats: features to compare with, and runs without training."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from dino_exp.config.compose import compose
from dino_exp.export.trained import Trained, read_run
from dino_exp.training.networks import build_networks

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def features(run: Path, network: str = "teacher") -> Tensor:
    """Return the features of `IMAGES` by a run's last checkpoint."""
    with torch.no_grad():
        return read_run(run, "last").backbone(network)(IMAGES)


def untrained(*overrides: str) -> Trained:
    """Return an untrained run whose batch-norm statistics have moved from their initial values."""
    cfg = compose(["experiment=debug", *overrides])
    student, teacher = build_networks(cfg)
    with torch.no_grad():
        for network in (student, teacher):
            network(2 * [IMAGES[:, [0] * cfg.data.channels]])
            network.requires_grad_(False).eval()
    return Trained(
        path=Path("run"),
        cfg=cfg,
        student=student,
        teacher=teacher,
        center=torch.zeros(1, cfg.head.out_dim),
        step=0,
        epochs=0,
        verdict="none yet",
        evidence="",
        knn_top1=None,
        revision="unknown",
    )


def code_in(folder: Path) -> str:
    """Return the Python code that the model card shows."""
    found = re.search(r"```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert found
    return found.group(1)
