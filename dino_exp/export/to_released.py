"""`format=dino`: a full checkpoint as the released code writes it, for its evaluation scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from dino_exp.config.network_schema import TimmConfig, VitConfig
from dino_exp.config.per_step import BATCH_OF_LR, PerStep
from dino_exp.config.schema import Config
from dino_exp.export.to_timm import SIZES
from dino_exp.export.trained import Trained, not_exportable
from dino_exp.weights.read_weights import read_weights
from dino_exp.weights.released_layout import released_layout

FILE = "checkpoint.pth"


def write(trained: Trained, network: str, folder: Path) -> str:
    """Write `checkpoint.pth` with both networks, verify it, and return how to use it, as Markdown.

    Raises:
        UserError: the released code cannot build the network.
    """
    arch = released_arch(trained)
    student, teacher = trained.student.state_dict(), trained.teacher.state_dict()
    args = released_args(trained.cfg, arch)
    content = released_layout(student, teacher, trained.center, epoch=trained.epochs, args=args)
    torch.save(content, folder / FILE)
    back = read_weights(folder / FILE, trained.teacher.backbone.state_dict())
    for ours, theirs in ((student, back.student), (teacher, back.teacher)):
        assert theirs is not None
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    return (
        f"{how_to_load(trained, network, arch)}\n\n"
        "From PyTorch 2.6 on, those scripts first need "
        "`torch.serialization.add_safe_globals([argparse.Namespace])`, because the file contains the "
        "arguments of the training, as theirs does. It does not contain the optimizer's state."
    )


def released_arch(trained: Trained) -> str:
    """Return the released code's `--arch` for the backbone, or our name for another vision transformer.

    Raises:
        UserError: the released code cannot build the network: another stem, a torchvision model whose
            classifier is not called `fc`, not 3 channels, or a timm model other than XCiT.
    """
    node: Any = trained.cfg.backbone  # its other keys depend on its kind
    channels = trained.cfg.data.channels
    if trained.kind is VitConfig:
        if node.stem != "patch":
            raise not_exportable(
                f"backbone.stem = {node.stem}: the released code has no transformer with this stem"
            )
        return node.name
    if channels != 3:
        raise not_exportable(f"data.channels = {channels}: the released scripts build {node.name} for 3")
    if trained.kind is TimmConfig and node.name.startswith("xcit_"):
        return re.sub(r"_(224|384)$", "", node.name)  # its authors' name has no image size
    if trained.kind is TimmConfig or node.stem == "small" or not hasattr(trained.teacher.backbone, "fc"):
        raise not_exportable(f"backbone.name = {node.name}: the released scripts cannot build this network")
    return node.name


def how_to_load(trained: Trained, network: str, arch: str) -> str:
    """Return how to load the checkpoint with the released code, as Markdown."""
    node: Any = trained.cfg.backbone
    size, channels = trained.image_size, trained.cfg.data.channels
    patch = node.get("patch_size", 16)
    widths = (node.get("embed_dim"), node.get("depth"), node.get("num_heads"))
    if trained.kind is not VitConfig or (arch, widths, node.mlp_ratio, size, channels) in (
        (f"vit_{name}", widths, 4, 224, 3) for widths, name in SIZES.items()
    ):
        return (
            f"```\npython eval_knn.py --arch {arch} --patch_size {patch} --pretrained_weights {FILE} "
            f"--checkpoint_key {network} --data_path ...\n```"
        )
    return (
        "```python\n"
        "# in a checkout of facebookresearch/dino\n"
        "from vision_transformer import VisionTransformer\n"
        "from utils import load_pretrained_weights\n\n"
        f"model = VisionTransformer(img_size=[{size}], patch_size={patch}, in_chans={channels}, "
        f"num_classes=0, embed_dim={node.embed_dim}, depth={node.depth}, num_heads={node.num_heads}, "
        f"mlp_ratio={node.mlp_ratio}, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))\n"
        f'load_pretrained_weights(model, "{FILE}", "{network}", "{arch}", {patch})\n'
        "```"
    )


def released_args(cfg: Config, arch: str) -> dict[str, Any]:
    """Return the equivalent arguments of `main_dino.py` by its names, on one GPU."""
    loss, optimizer, crops, per_step = cfg.loss, cfg.optimizer, cfg.crops, PerStep.of(cfg)
    node: Any = cfg.backbone
    transformer = {"patch_size": node.patch_size} if "patch_size" in node else {}
    return {
        "arch": arch,
        **transformer,
        "out_dim": cfg.head.out_dim,
        "norm_last_layer": cfg.head.norm_last_layer,
        "use_bn_in_head": cfg.head.use_bn,
        "momentum_teacher": per_step.momentum,
        "warmup_teacher_temp": loss.warmup_teacher_temp,
        "teacher_temp": loss.teacher_temp,
        "warmup_teacher_temp_epochs": loss.warmup_teacher_temp_epochs,
        "use_fp16": cfg.trainer.precision == "fp16",
        "weight_decay": optimizer.weight_decay,
        "weight_decay_end": optimizer.final_weight_decay,
        "clip_grad": optimizer.clip_grad,
        "batch_size_per_gpu": cfg.trainer.batch_size,
        "epochs": cfg.trainer.epochs,
        "freeze_last_layer": optimizer.freeze_last_layer_epochs,
        "lr": per_step.peak_lr * BATCH_OF_LR / cfg.trainer.batch_size,
        "warmup_epochs": optimizer.warmup_epochs,
        "min_lr": optimizer.min_lr,
        "optimizer": optimizer._target_.rpartition(".")[2],
        "drop_path_rate": node.get("drop_path_rate", 0.0),
        "global_crops_scale": tuple(crops.global_scale),
        "local_crops_number": crops.local_number,
        "local_crops_scale": tuple(crops.local_scale),
        "data_path": str(cfg.data.root or cfg.data.name),
        "seed": cfg.trainer.seed,
    }
