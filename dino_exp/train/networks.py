"""The student and the teacher that a configuration describes."""

from __future__ import annotations

import torch

from dino_exp.backbone.execution import checkpoint_blocks, compile_in_place, is_convolutional
from dino_exp.config.schema import Config
from dino_exp.config.targets import build
from dino_exp.dino.model import DINONetwork, student_and_teacher
from dino_exp.parallel import distributed
from dino_exp.parallel.batch_norm import synchronize_batch_norms


def build_networks(cfg: Config) -> tuple[DINONetwork, DINONetwork]:
    """Return student and teacher as they are before the first step; they depend on the seed alone."""
    torch.manual_seed(cfg.trainer.seed)
    size, channels = cfg.crops.global_size, cfg.data.channels

    def backbone(is_student: bool) -> torch.nn.Module:
        drop_path = (
            {} if is_student or not hasattr(cfg.backbone, "drop_path_rate") else {"drop_path_rate": 0.0}
        )
        return build(cfg.backbone, in_channels=channels, image_size=size, **drop_path)

    return student_and_teacher(backbone, lambda in_dim: build(cfg.head, in_dim=in_dim))


def prepare_networks(cfg: Config, student: DINONetwork, teacher: DINONetwork, device: torch.device) -> None:
    """Move the networks to the device, with the memory layout and execution that training needs."""
    for network in (student, teacher):
        network.to(device)
        if device.type != "mps" and is_convolutional(network.backbone):
            network.use_memory_format(torch.channels_last)
        if distributed.several():
            synchronize_batch_norms(network, device)
    if cfg.trainer.checkpoint_blocks:
        checkpoint_blocks(student.backbone, name=cfg.backbone.name)
    if cfg.trainer.compile:
        for network in (student, teacher):
            compile_in_place(network.backbone, device)
