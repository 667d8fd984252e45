"""The student and the teacher that a configuration describes."""

from __future__ import annotations

import torch

from dino_exp.config.schema import Config
from dino_exp.config.targets import build
from dino_exp.dino.model import DINONetwork, student_and_teacher


def build_networks(cfg: Config) -> tuple[DINONetwork, DINONetwork]:
    """Student and teacher as they are before the first step; they depend on the seed alone."""
    torch.manual_seed(cfg.trainer.seed)
    size, channels = cfg.crops.global_size, cfg.data.channels

    def backbone(is_student: bool) -> torch.nn.Module:
        drop_path = (
            {} if is_student or not hasattr(cfg.backbone, "drop_path_rate") else {"drop_path_rate": 0.0}
        )
        return build(cfg.backbone, in_channels=channels, image_size=size, **drop_path)

    return student_and_teacher(backbone, lambda in_dim: build(cfg.head, in_dim=in_dim))
