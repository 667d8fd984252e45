"""The student and the teacher that a configuration describes."""

from __future__ import annotations

import warnings

import torch

from dino_exp.backbone.execution import checkpoint_blocks, compile_in_place, is_convolutional
from dino_exp.config.schema import Config
from dino_exp.config.targets import build
from dino_exp.dino.model import DINONetwork, student_and_teacher
from dino_exp.errors import UserError
from dino_exp.parallel import distributed
from dino_exp.parallel.batch_norm import synchronize_batch_norms
from dino_exp.weights.init_from import begin_with_weights


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


def weights_problems(cfg: Config) -> list[str]:
    """Return why the weights of `init_from` do not fit; empty if they do, or if only a run can tell.

    The networks are built without values. A run loads the weights again, because it may begin much later.
    """
    if not cfg.init_from:
        return []
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            student, teacher = build_networks(cfg)
    except Exception:  # some networks need values to be built
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch says that there is nothing to copy to
            begin_with_weights(cfg, student, teacher, build(cfg.loss, out_dim=cfg.head.out_dim))
    except UserError as error:
        return [str(error)]
    return []


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
