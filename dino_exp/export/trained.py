"""A trained run as exports need it: its networks, settings and results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dino_exp.config.schema import Config, schema_of
from dino_exp.config.stored import read_config
from dino_exp.dino.model import DINONetwork
from dino_exp.errors import UserError
from dino_exp.runs import former_names
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training.networks import build_networks
from dino_exp.weights.load_into import load_into
from dino_exp.weights.read_weights import checkpoint_file, load_safely

PARTS = {"student", "teacher", "loss", "step", "last_metrics", "best_knn"}
"""Keys of a checkpoint that are used here."""


@dataclass(frozen=True)
class Trained:
    """A run's checkpoint; the networks are in eval mode on the CPU."""

    path: Path
    cfg: Config
    student: DINONetwork
    teacher: DINONetwork
    center: Tensor
    """(1, K)."""
    step: int
    epochs: int
    """Number of epochs begun."""
    verdict: str
    evidence: str
    knn_top1: float | None
    """k-NN top-1 of the teacher at this step, in percent."""
    revision: str
    """Git revision of the code that trained it."""

    @property
    def kind(self) -> type:
        """The backbone's class in the configuration schema."""
        return schema_of(self.cfg.backbone)

    @property
    def image_size(self) -> int:
        """Side of the images for which the position embedding is stored, in pixels."""
        return self.cfg.crops.global_size

    def shapes(self) -> str:
        """Return the shapes of the backbone's input and output, as text."""
        channels, size = self.cfg.data.channels, self.image_size
        return f"(B, {channels}, {size}, {size}) -> (B, {self.teacher.backbone.feature_dim})"

    def images(self) -> Tensor:
        """Return noise to compare networks on, (4, C, S, S)."""
        shape = (4, self.cfg.data.channels, self.image_size, self.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def backbone(self, network: str) -> nn.Module:
        """Return the backbone of `network`, which is teacher or student."""
        return (self.teacher if network == "teacher" else self.student).backbone


def read_run(path: Path, checkpoint: str) -> Trained:
    """Read `checkpoints/<checkpoint>.pt` of a run.

    Raises:
        UserError: the folder is not a run, or the checkpoint is missing or has another network.
    """
    directory = RunDirectory(path)
    if not directory.config_file.is_file():
        raise UserError(f"run = {path}: not a run, it has no config.yaml; use outputs/EXPERIMENT/RUN.")
    file = checkpoint_file(path, checkpoint)
    cfg = read_config(directory)
    state = load_safely(file)
    state = former_names.TABLE.present_state(state) if isinstance(state, dict) else {}
    if not state.keys() >= PARTS:
        raise UserError(f"{file}: not a checkpoint of this project; set run to the folder of a run.")
    networks = build_networks(cfg)
    for name, network in zip(("student", "teacher"), networks, strict=True):
        load_into(network.requires_grad_(False), state[name], file, head=True)
        network.eval()
    return Trained(
        path=path,
        cfg=cfg,
        student=networks[0],
        teacher=networks[1],
        center=state["loss"]["center"],
        step=state["step"],
        **_results(directory, state, state["best_knn"] if checkpoint == "best" else None),
    )


def _results(directory: RunDirectory, state: dict[str, Any], knn: float | None) -> dict[str, Any]:
    """Return results and origin of a checkpoint, from itself, the run's summary and its status.

    `knn` is given for the best checkpoint, which is saved before its metrics include it.
    """
    metrics, summary, status = state["last_metrics"], directory.read_summary(), directory.read_status()
    revision, changed = status.get("git_revision"), status.get("git_dirty")
    return {
        "epochs": metrics.get("epoch", -1) + 1,
        "verdict": metrics.get("verdict", "none yet"),
        "evidence": summary.get("evidence", "") if summary.get("steps") == state["step"] else "",
        "knn_top1": metrics.get("knn_top1") if knn is None else knn,
        "revision": f"{revision}{' with uncommitted changes' if changed else ''}" if revision else "unknown",
    }


def not_exportable(reason: str) -> UserError:
    """Return the error for a network that a format cannot express, with the formats that can."""
    return UserError(f"{reason}; use format=torchhub or format=onnx.")
