"""The student and the teacher that a configuration describes."""

from __future__ import annotations

import warnings

import torch

from dino_exp.backbone.execution import checkpoint_blocks, is_convolutional, keep_gradients_exact
from dino_exp.config.schema import Config
from dino_exp.config.targets import build
from dino_exp.dino.model import DINONetwork, student_and_teacher
from dino_exp.errors import UserError
from dino_exp.parallel import distributed
from dino_exp.parallel.batch_norm import synchronize_batch_norms
from dino_exp.training import compilation
from dino_exp.training.plan import Plan
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


def prepare_networks(
    cfg: Config,
    student: DINONetwork,
    teacher: DINONetwork,
    device: torch.device,
    plan: Plan,
    autocast_type: torch.dtype | None,
) -> bool:
    """Move the networks to the device, with the memory layout and execution that training needs.

    Returns whether they are compiled. That needs seconds to a minute, and comes before batch norm is that of
    all processes: where one of them fails, the others must not wait for it.
    """
    for network in (student, teacher):
        network.to(device)
        if device.type != "mps" and is_convolutional(network.backbone):
            network.use_memory_format(torch.channels_last)
    keep_gradients_exact(student, device, autocast_type)
    if cfg.trainer.checkpoint_blocks:
        checkpoint_blocks(student.backbone, name=cfg.backbone.name)
    wanted = cfg.trainer.compile
    compiled = wanted == "true" or (
        wanted == "auto" and compilation.pays(student.backbone, plan.total_steps, device)
    )
    if compiled:
        images = plan.batch_size // distributed.count() // cfg.trainer.accumulate
        sizes = [(2, cfg.crops.global_size), (cfg.crops.local_number, cfg.crops.local_size)]
        views = [
            torch.zeros(number * images, cfg.data.channels, size, size, device=device)
            for number, size in sizes
            if number
        ]
        compiled = compilation.compile_networks(
            student, teacher, views, autocast_type, required=wanted == "true"
        )
    if distributed.several():
        for network in (student, teacher):
            synchronize_batch_norms(network, device)
    return compiled
