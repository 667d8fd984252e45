"""A run's networks, read from its directory, and what there is to say about them."""

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
from dino_exp.train.networks import build_networks
from dino_exp.weights.load_into import load_into
from dino_exp.weights.weight_files import load_safely

PARTS = {"student", "teacher", "loss", "step", "last_metrics", "best_knn"}
"""Of a checkpoint, what is looked at here."""


@dataclass(frozen=True)
class Trained:
    """What a run's checkpoint holds; the networks are in eval mode on the CPU."""

    path: Path
    cfg: Config
    student: DINONetwork
    teacher: DINONetwork
    center: Tensor
    """(1, K)."""
    step: int
    epochs: int
    """Epochs begun."""
    verdict: str
    evidence: str
    knn_top1: float | None
    """Of the teacher at this step, percent."""
    revision: str
    """Of the code that trained it."""

    @property
    def kind(self) -> type:
        """The schema's class of the backbone."""
        return schema_of(self.cfg.backbone)

    @property
    def image_size(self) -> int:
        """Side of the images that the position embedding is stored for, in pixels."""
        return self.cfg.crops.global_size

    def shapes(self) -> str:
        """What a backbone takes and gives, in words."""
        channels, size = self.cfg.data.channels, self.image_size
        return f"(B, {channels}, {size}, {size}) -> (B, {self.teacher.backbone.feature_dim})"

    def images(self) -> Tensor:
        """Noise to compare networks on, (4, C, S, S)."""
        shape = (4, self.cfg.data.channels, self.image_size, self.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def backbone(self, network: str) -> nn.Module:
        """The teacher's or the student's."""
        return (self.teacher if network == "teacher" else self.student).backbone


def read_run(path: Path, checkpoint: str) -> Trained:
    """Read `checkpoints/<checkpoint>.pt` of a run.

    Raises:
        UserError: the folder is no run, has no such checkpoint, or holds another network than it says.
    """
    directory = RunDirectory(path)
    if not directory.config_file.is_file():
        raise UserError(f"run = {path}: no run, because it has no config.yaml; give outputs/EXPERIMENT/RUN.")
    file = directory.checkpoints / f"{checkpoint}.pt"
    if not file.is_file():
        there = sorted(each.stem for each in directory.checkpoints.glob("*.pt"))
        has = f"there are checkpoint={' and checkpoint='.join(there)}" if there else "nothing was saved yet"
        raise UserError(f"run = {path}: no checkpoints/{file.name}; {has}.")
    cfg = read_config(directory)
    state = load_safely(file)
    state = former_names.TABLE.present_state(state) if isinstance(state, dict) else {}
    if not state.keys() >= PARTS:
        raise UserError(f"{file}: no checkpoint of this project; run= takes the folder of a run.")
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
        **said_of(directory, state, state["best_knn"] if checkpoint == "best" else None),
    )


def said_of(directory: RunDirectory, state: dict[str, Any], knn: float | None) -> dict[str, Any]:
    """Results and origin of a checkpoint, from itself, the run's summary and its status.

    `knn` is known of the best checkpoint, which is saved before its metrics hold it.
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


def no_such(reason: str) -> UserError:
    """The error that names the formats which take any network."""
    return UserError(f"{reason}; use format=torchhub or format=onnx.")
