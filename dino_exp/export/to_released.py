"""`format=dino`: a full checkpoint as the released code writes it, for its own evaluation scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dino_exp.errors import UserError
from dino_exp.export.trained import TIMM, VIT, Trained
from dino_exp.weights.files import read
from dino_exp.weights.released import released_layout

FILE = "checkpoint.pth"


def write(trained: Trained, network: str, folder: Path) -> str:
    """Write `checkpoint.pth` with both networks, and read it back; returns how to use it.

    Raises:
        UserError: the released code has no such network.
    """
    arch = released_arch(trained.cfg.backbone)
    student, teacher = trained.student.state_dict(), trained.teacher.state_dict()
    args = released_args(trained.cfg, arch)
    content = released_layout(student, teacher, trained.center, epoch=trained.epochs, args=args)
    torch.save(content, folder / FILE)
    back = read(folder / FILE)
    for ours, theirs in ((student, back.student), (teacher, back.teacher)):
        assert theirs is not None
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    patch = f" --patch_size {args['patch_size']}" if "patch_size" in args else ""
    return (
        "```\n"
        f"python eval_knn.py --arch {arch}{patch} --pretrained_weights {FILE} --checkpoint_key {network} "
        "--data_path ...\n"
        "```\n\n"
        f"{geometry(trained)}From PyTorch 2.6 on, those scripts first need "
        "`torch.serialization.add_safe_globals([argparse.Namespace])`, because the file holds the arguments "
        "of the training, as theirs does. The optimiser's state is not in it."
    )


def released_arch(node: Any) -> str:
    """The released code's `--arch` for a backbone.

    Raises:
        UserError: it has none: a stem that it does not know, or a timm model other than its XCiT.
    """
    if node._target_ == VIT and node.stem != "patch":
        raise UserError(
            f"backbone.stem = {node.stem}: the released code has no transformer with this stem; use "
            "format=torchhub or format=onnx."
        )
    is_theirs = node._target_ != TIMM or node.name.startswith("xcit_")
    if not is_theirs or node.get("stem") == "small":
        raise UserError(
            f"backbone.name = {node.name}{' with backbone.stem = small' if is_theirs else ''}: the released "
            "code has no such network; use format=timm, format=torchhub or format=onnx."
        )
    # the name that the original authors of XCiT gave it ends before the size of the pictures
    return node.name.removesuffix("_224") if node._target_ == TIMM else node.name


def geometry(trained: Trained) -> str:
    """What the scripts must be told of a transformer that is none of theirs; empty for one that is."""
    node, size = trained.cfg.backbone, trained.picture_size
    if node._target_ != VIT or (node.name in ("vit_tiny", "vit_small", "vit_base") and size == 224):
        return ""
    return (
        f"The network is `VisionTransformer(img_size=[{size}], patch_size={node.patch_size}, "
        f"in_chans={trained.cfg.data.channels}, embed_dim={node.embed_dim}, depth={node.depth}, "
        f"num_heads={node.num_heads}, mlp_ratio={node.mlp_ratio}, qkv_bias=True, "
        "norm_layer=partial(nn.LayerNorm, eps=1e-6))` of their `vision_transformer.py`. "
    )


def released_args(cfg: Any, arch: str) -> dict[str, Any]:
    """The command line of `main_dino.py` that says the same, by its names; the batch is that of one GPU."""
    loss, optimizer, crops, node = cfg.loss, cfg.optimizer, cfg.crops, cfg.backbone
    transformer = {"patch_size": node.patch_size} if "patch_size" in node else {}
    return {
        "arch": arch,
        **transformer,
        "out_dim": cfg.head.out_dim,
        "norm_last_layer": cfg.head.norm_last_layer,
        "use_bn_in_head": cfg.head.use_bn,
        "momentum_teacher": cfg.ema.momentum,
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
        "lr": optimizer.lr,
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
