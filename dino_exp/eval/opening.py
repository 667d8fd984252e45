"""The network that `evaluate.py` evaluates, loaded from a run or a weights file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from dino_exp import machine
from dino_exp.backbone.image_size import check_image_sizes
from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.config.targets import build
from dino_exp.data.decoding import Decoding
from dino_exp.data.labeled import short_digest
from dino_exp.dino.model import DINONetwork
from dino_exp.errors import UserError
from dino_exp.eval.subject import Subject
from dino_exp.runs import former_names
from dino_exp.runs.weights_file import digest, weights_file
from dino_exp.weights.describe import describe_backbone
from dino_exp.weights.load_into import load_into
from dino_exp.weights.read_weights import Weights, checkpoint_file, read_weights

IMAGE_SIZE, CROP_RATIO = 224, 0.875
"""Values of the released code, for weights files and unless the command line sets others."""
ONLY = "network"
"""Name of the network of a file that has only one."""


@dataclass(frozen=True)
class Origin:
    """The origin of the weights, for people and for evaluations.json."""

    file: Path
    sha256: str
    network: str
    checkpoint: str | None
    """last or best; None for a weights file."""
    step: int | None
    report: str
    """What was taken of the file, and what was not."""

    @property
    def name(self) -> str:
        """For people."""
        at = f", step {self.step:,}" if self.step is not None else ""
        whose = "" if self.network == ONLY else f"{self.network} of "
        return f"{whose}{self.file}{at}"


def open_subject(cfg: EvaluateConfig) -> tuple[Subject, Origin]:
    """Load the network of a validated configuration.

    Raises:
        UserError: the file is damaged, holds what would have to be executed, or another network.
    """
    if cfg.run is not None:
        file = checkpoint_file(cfg.run, cfg.checkpoint)
    else:
        assert cfg.weights is not None
        file = weights_file(cfg.weights)
    size = cfg.image_size or IMAGE_SIZE
    backbone = build_backbone(cfg, size)
    weights = read_weights(file, backbone.state_dict())
    state, network = _network(weights, cfg.network)
    backbone, report = load_backbone(cfg, backbone, state, file)
    check_image_sizes(
        backbone, name=cfg.backbone.name, in_channels=cfg.data.channels, sizes=[size], keys="image_size"
    )
    device = machine.choose_device(cfg.device, "device")
    workers = machine.choose_workers(cfg.num_workers, device)
    machine.use_threads(device, 0)
    sha256 = digest(str(file)) or ""
    node = cast("dict[str, Any]", OmegaConf.to_container(cfg.backbone, resolve=True))
    architecture = former_names.TABLE.first_node("backbone", node)
    checkpoint = cfg.checkpoint if cfg.run is not None else None
    origin = Origin(file, sha256, network, checkpoint, weights.step, report)
    subject = Subject(
        name=origin.name,
        digest=short_digest(sha256, network, sorted(architecture.items())),
        backbone=backbone.to(device).eval().requires_grad_(False),
        device=device,
        autocast_type=machine.choose_precision(cfg.precision, device, "precision"),
        image_size=size,
        crop_ratio=cfg.crop_ratio or CROP_RATIO,
        decoding=Decoding.of_config(cfg.data),
        mean=tuple(cfg.data.mean),
        std=tuple(cfg.data.std),
        batch_size=cfg.batch_size,
        workers=workers,
        seed=cfg.seed,
    )
    return subject, origin


def load_backbone(
    cfg: EvaluateConfig, backbone: nn.Module, state: Mapping[str, Tensor], file: Path
) -> tuple[nn.Module, str]:
    """Return the configured backbone with the tensors of a file, and a report of what was loaded.

    It is built anew if the file has another grid of position embeddings, so that for each image size the
    trained embedding is resized once.
    """
    size = cfg.image_size or IMAGE_SIZE
    grids = [
        grid_of(each) for each in (state.get("backbone.pos_embed"), getattr(backbone, "pos_embed", None))
    ]
    if grids[0] and grids[1] and grids[0] != grids[1]:
        backbone = build_backbone(cfg, grids[0] * (size // grids[1]))
    report = load_into(DINONetwork(backbone, nn.Identity()), state, file, head=False)
    if not all(bool(parameter.isfinite().all()) for parameter in backbone.parameters()):
        raise UserError(f"{file}: its weights are not all finite numbers; the network has diverged.")
    unused = [key for key in report.unexpected if not key.startswith("head.")]
    words = f"{len(report.matched)} tensors matched, {len(report.missing)} missing, {len(unused)} unused"
    words += f" ({', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''})" if unused else ""
    return backbone, f"{words}; {report.resized}" if report.resized else words


def build_backbone(cfg: EvaluateConfig, size: int) -> nn.Module:
    """Return the configured backbone with random weights, for images of `size` x `size` pixels."""
    no_depth = {"drop_path_rate": 0.0} if hasattr(cfg.backbone, "drop_path_rate") else {}
    with torch.random.fork_rng(devices=[]):
        return build(cfg.backbone, in_channels=cfg.data.channels, image_size=size, **no_depth)


def grid_of(positions: Any) -> int:
    """Return the patches per side of a position embedding (1, patches + other tokens, D); 0 if it is none."""
    if not isinstance(positions, Tensor) or positions.ndim != 3:
        return 0
    grid = math.isqrt(positions.shape[1])
    return grid if positions.shape[1] - grid**2 <= 8 else 0


def _network(weights: Weights, wanted: str) -> tuple[Mapping[str, Tensor], str]:
    """Return the tensors and the name of the wanted network, or of the only one in the file."""
    if wanted == "student" and weights.student is None:
        found, _ = describe_backbone(weights.teacher)
        raise UserError(
            f"network = student: {weights.file} has only one network ({found}); drop network=student."
        )
    if weights.student is None:
        return weights.teacher, ONLY
    return (weights.student, "student") if wanted == "student" else (weights.teacher, "teacher")
