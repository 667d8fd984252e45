"""Relations between the values of a configuration: errors, and warnings about risky settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from omegaconf import OmegaConf

from dino_exp.config.data_schema import (
    Cifar10Config,
    FashionMnistConfig,
    OthersDataConfig,
    ShapesConfig,
    StoredConfig,
)
from dino_exp.config.identity import PLACES
from dino_exp.config.library_names import model_names
from dino_exp.config.messages import closest, did_you_mean, show
from dino_exp.config.network_schema import TimmConfig, TorchvisionConfig, VitConfig
from dino_exp.config.per_step import PerStep
from dino_exp.config.schema import schema_of
from dino_exp.config.tracker_schema import MlflowConfig
from dino_exp.data.value_range import pairs_of
from dino_exp.errors import UserError, refusing
from dino_exp.paths import expanded
from dino_exp.runs.kept_checkpoints import Keeping
from dino_exp.runs.weights_file import weights_file

TRAINING_IMAGES: dict[type, int] = {Cifar10Config: 50_000, FashionMnistConfig: 60_000}


def problems(cfg: Any) -> Iterator[str]:
    """Yield the errors, one per line; each single value is within its own bounds already."""
    yield from _names(cfg)
    yield from _weights(cfg)
    yield from _tracker(cfg)
    yield from backbone(cfg)
    yield from _crops(cfg)
    yield from _augment(cfg)
    yield from _schedules(cfg)
    yield from data(cfg)
    yield from _batch(cfg)
    yield from _machine(cfg)
    yield from _checkpoints(cfg)


def _names(cfg: Any) -> Iterator[str]:
    if not re.fullmatch(r"[\w+-][\w.+-]*", cfg.name):
        yield (
            f"name = {show(cfg.name)}: it becomes a folder's name; use letters, digits, '.', '_', '+' and "
            "'-', and no '.' at the start."
        )
    if not cfg.output_root.strip() or cfg.output_root.startswith("~"):
        yield f"output_root = {show(cfg.output_root)}: give a folder, e.g. outputs or $HOME/outputs."


def _weights(cfg: Any) -> Iterator[str]:
    digest = cfg.init_sha256
    if cfg.init_adapt and cfg.init_from is None:
        yield f"init_adapt = {show(cfg.init_adapt)}: adapts weights; set init_from as well, or neither."
    if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
        yield f"init_sha256 = {show(digest)}: not a SHA-256; do not set it, it is computed from init_from."
    elif cfg.init_from is None and digest is not None:
        yield "init_sha256: belongs to weights; set init_from as well, or neither."
    elif cfg.init_from is not None and digest is None:
        try:
            weights_file(cfg.init_from)
        except UserError as error:
            yield f"init_from = {error}"


def _tracker(cfg: Any) -> Iterator[str]:
    if schema_of(cfg.tracker) is MlflowConfig and cfg.tracker.tracking_uri is not None:
        problem = mlflow_address_problem("tracker.tracking_uri", cfg.tracker.tracking_uri)
        if problem:
            yield problem


def mlflow_address_problem(name: str, address: str) -> str:
    """Return why an address is none of an MLflow server, without the password in it; empty if it is one.

    That of `tracker.tracking_uri` must have no user and password, because it is stored with the run.
    """
    shown = re.sub("[^/]*@", "", address)
    if shown != address and name.startswith("tracker."):
        return (
            f"{name} = {shown}: has a user or password in it, which would be stored with the run; set "
            "MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
        )
    try:
        parts = urlsplit(address)
        is_server = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_server = False
    if is_server:
        return ""
    return (
        f"{name} = {shown}: not the address of a server, e.g. http://localhost:5000; for files or a database "
        "start `mlflow server --backend-store-uri ...` and give its address."
    )


def backbone(cfg: Any) -> Iterator[str]:
    """Yield errors of the backbone."""
    node, kind = cfg.backbone, schema_of(cfg.backbone)
    if kind is VitConfig:
        if node.embed_dim % node.num_heads:
            fitting = [heads for heads in range(1, node.embed_dim + 1) if node.embed_dim % heads == 0]
            closest_one = min(fitting, key=lambda heads: (abs(heads - node.num_heads), heads))
            yield (
                f"backbone.num_heads = {node.num_heads}: must divide backbone.embed_dim = {node.embed_dim}; "
                f"the nearest that does is {closest_one}."
            )
        size = int(node.patch_size)
        if node.stem != "patch" and (size < 2 or size & (size - 1)):
            below = max(2, 1 << (size.bit_length() - 1))
            yield (
                f"backbone.patch_size = {size}: backbone.stem = {node.stem} halves the image step by step "
                f"and needs a power of two; nearest are {below} and {2 * below}."
            )
    elif kind in (TimmConfig, TorchvisionConfig):
        library = "timm" if kind is TimmConfig else "torchvision"
        names = model_names(library)
        name = node.name.split(".")[0] if kind is TimmConfig else node.name  # a timm tag names weights
        if names and name not in names:
            near = did_you_mean(closest(name, names, cutoff=0.5))
            yield f"backbone.name = {show(node.name)}: {library} has no such model{near or '.'}"
        elif kind is TorchvisionConfig and node.stem == "small" and not _is_resnet(name):
            yield (
                f"backbone.stem = small: only ResNets have it, and backbone.name is {name}; "
                "use backbone.stem=imagenet."
            )


def _is_resnet(name: str) -> bool:
    return re.match(r"(resnet|resnext|wide_resnet)\d+", name) is not None


def patch_size(cfg: Any) -> int | None:
    """Return the side of the backbone's patches in pixels; None if it has none."""
    kind = schema_of(cfg.backbone)
    if kind is VitConfig:
        return cfg.backbone.patch_size
    found = None
    if kind is TimmConfig:
        found = re.search(r"_(?:patch|p)(\d+)(?:_|$)", cfg.backbone.name)
    elif kind is TorchvisionConfig:
        found = re.match(r"vit_\w_(\d+)$", cfg.backbone.name)
    return int(found.group(1)) if found else None


def _crops(cfg: Any) -> Iterator[str]:
    patch, crops, is_vit = patch_size(cfg), cfg.crops, schema_of(cfg.backbone) is VitConfig
    named = "backbone.patch_size" if is_vit else f"the patch of {cfg.backbone.name}"
    for key in ("global_size", "local_size") if crops.local_number else ("global_size",):
        size = crops[key]
        if patch and size % patch:
            yield f"crops.{key} = {size}: not a multiple of {named} = {patch}; {nearest(size, patch)}."
    for key in ("global_scale", "local_scale"):
        yield from _ordered(f"crops.{key}", crops[key])


def nearest(size: int, unit: int) -> str:
    """Return the multiples of `unit` around a size."""
    below = size // unit * unit
    return f"nearest are {below} and {below + unit}" if below else f"the smallest is {unit}"


def _augment(cfg: Any) -> Iterator[str]:
    yield from _ordered("augment.blur_sigma", cfg.augment.blur_sigma)
    if cfg.data.backend == "pil":
        node = cfg.augment
        for key, value, released, reason in (
            ("rotation", f"{node.rotation:g}", "0", "does not rotate"),
            ("per_channel", show(node.per_channel), "false", "has one factor for all channels"),
            ("gray_method", node.gray_method, "luminance", "knows luminance only"),
        ):
            if value != released:
                yield (
                    f"augment.{key} = {value}: the released pipeline, data.backend = pil, {reason}; use "
                    f"augment.{key}={released} or data.backend=fast."
                )
    if cfg.augment.channel_drop > 0 and cfg.data.channels == 1:
        yield (
            f"augment.channel_drop = {cfg.augment.channel_drop:g}: one channel always stays, and images with "
            "data.channels = 1 have no other; use augment.channel_drop=0."
        )


def _ordered(key: str, pair: Any) -> Iterator[str]:
    low, high = pair
    if low > high:
        yield f"{key} = {show(pair)}: the first must not exceed the second; write [{high}, {low}]."


def _schedules(cfg: Any) -> Iterator[str]:
    loss, ema, optimizer, epochs = cfg.loss, cfg.ema, cfg.optimizer, cfg.trainer.epochs
    spans = {"loss.warmup_teacher_temp_epochs": loss.warmup_teacher_temp_epochs}
    names = ("warmup_epochs", "freeze_last_layer_epochs")
    spans |= {f"optimizer.{name}": optimizer[name] for name in names}
    for key, span in spans.items():
        if span > epochs:
            yield f"{key} = {span:g}: more than trainer.epochs = {epochs}; use at most {epochs}."
    if ema.schedule != "constant" and ema.final_momentum < ema.momentum:
        yield (
            f"ema.final_momentum = {ema.final_momentum}: less than ema.momentum = {ema.momentum}, and the "
            "teacher slows down over a run; raise it (the paper ends at 1) or use ema.schedule=constant."
        )
    batch, peak = cfg.trainer.batch_size, PerStep.of(cfg).peak_lr
    if optimizer.min_lr > peak:
        source = f"optimizer.lr · batch / 256 = {optimizer.lr:g} · {batch} / 256"
        if optimizer.lr_rule != "linear":
            source = (
                f"optimizer.lr_rule = {optimizer.lr_rule}, optimizer.lr = {optimizer.lr:g}, batch {batch}"
            )
        yield (
            f"optimizer.min_lr = {optimizer.min_lr:g}: more than the peak, {source} = {peak:g}; lower it or "
            "raise optimizer.lr."
        )


def data(cfg: Any) -> Iterator[str]:
    """Yield errors of the data."""
    node, kind = cfg.data, schema_of(cfg.data)
    for key in ("mean", "std"):
        if len(node[key]) != node.channels:
            yield (
                f"data.{key} = {show(node[key])}: give one number per channel; "
                f"data.channels = {node.channels}."
            )
    if node.backend == "pil" and node.channels not in (1, 3):
        yield (
            f"data.backend = pil: Pillow's images have 1 or 3 channels, and data.channels = "
            f"{node.channels}; use data.backend=fast."
        )
    if kind is Cifar10Config and node.channels != 3:
        yield f"data.channels = {node.channels}: CIFAR-10 has 3."
    if kind is ShapesConfig and node.channels not in (1, 3):
        yield f"data.channels = {node.channels}: shapes have 3 (RGB) or 1 (luminance)."
    if issubclass(kind, StoredConfig):
        if not (node.root or "").strip():
            yield f"data.root = {show(node.root)}: give the training images, e.g. data.root=/path/to/train."
        yield from _values(node)
        for part in ("train", "val"):
            if node.probe[part] is not None and not node.probe[part].strip():
                yield f"data.probe.{part} = {show(node.probe[part])}: give images, or null for none."
        if node.probe.train and node.probe.val is None and node.val_root is None:
            yield (
                f"data.probe.train = {show(node.probe.train)}: there is nothing to classify by these images; "
                "give labeled images of the same classes as data.probe.val."
            )
        if node.packed_side and not node.packed:
            yield (
                f"data.packed_side = {node.packed_side}: only packed images are made smaller; add "
                "data.packed=true."
            )


def _values(node: Any) -> Iterator[str]:
    """Yield errors of the choice of bands and of their range."""
    channels = node.channels
    if node.bands is not None and len(node.bands) != channels:
        count = len(node.bands)
        fix = f"set data.channels={count}, with {count} numbers in data.mean and data.std"
        yield (
            f"data.bands = {show(node.bands)}: data.channels is {channels}; "
            f"{fix if count else 'give as many, or null for all'}."
        )
    try:
        pairs = () if node.range is None else pairs_of(node.range)
    except ValueError as error:
        yield f"data.range = {show(node.range)}: {error}"
    else:
        if len(pairs) not in (0, 1, channels):
            yield (
                f"data.range = {show(node.range)}: {len(pairs)} pairs; give one for all channels, or one for "
                f"each of data.channels = {channels}."
            )


def _batch(cfg: Any) -> Iterator[str]:
    data, kind, batch = cfg.data, schema_of(cfg.data), cfg.trainer.batch_size
    images = data.train_size if kind is ShapesConfig else TRAINING_IMAGES.get(kind)
    if images and batch > images:
        more = ", or raise data.train_size" if kind is ShapesConfig else ""
        yield (
            f"trainer.batch_size = {batch}: {data.name} has only {images} training images, less than one "
            f"batch; use at most {images}{more}."
        )


def _machine(cfg: Any) -> Iterator[str]:
    if cfg.trainer.precision == "fp16" and cfg.trainer.device == "cpu":
        yield "trainer.precision = fp16: not on trainer.device = cpu; use trainer.precision=bf16 or fp32."
    batch, accumulate = cfg.trainer.batch_size, cfg.trainer.accumulate
    if batch % accumulate:
        yield (
            f"trainer.batch_size = {batch}: not a multiple of trainer.accumulate = {accumulate}; "
            f"{nearest(batch, accumulate)}."
        )
    if cfg.trainer.cuda_graph:
        yield from _cuda_graph(cfg)


def _checkpoints(cfg: Any) -> Iterator[str]:
    try:
        Keeping.of(cfg.trainer.keep_checkpoints, cfg.trainer.checkpoint_every)
    except ValueError as error:
        yield f"trainer.keep_checkpoints = {show(cfg.trainer.keep_checkpoints)}: {error}."


def _cuda_graph(cfg: Any) -> Iterator[str]:
    """Yield what decides on the host during a step, and so cannot be in a CUDA graph."""
    trainer = cfg.trainer
    for key, value, refused in (
        ("trainer.device", trainer.device, trainer.device in ("cpu", "mps")),
        ("trainer.precision", trainer.precision, trainer.precision == "fp16"),
        ("trainer.accumulate", trainer.accumulate, trainer.accumulate > 1),
        ("trainer.checkpoint_blocks", "true", trainer.checkpoint_blocks),
        ("loss.teacher_temp", 0, cfg.loss.sharpening and cfg.loss.teacher_temp == 0),
    ):
        if refused:
            yield f"trainer.cuda_graph = true: not with {key} = {value}; set trainer.cuda_graph=false."


def folder_problems(cfg: Any) -> Iterator[str]:
    """Yield an error for each folder that this machine lacks; for runs that are trained here."""
    if issubclass(schema_of(cfg.data), (StoredConfig, OthersDataConfig)):
        for key in PLACES:
            path = OmegaConf.select(cfg, key)
            try:
                if path not in (None, "auto") and not _exists(path):
                    yield f"{key} = {show(path)}: no such folder or file."
            except UserError as error:
                yield f"{key} = {show(path)}: {error}"


def _exists(text: str) -> bool:
    """Return whether a path exists or, for a pattern of names, the folder above it."""
    path = expanded(text)
    with refusing("choose another, or ask its owner"):
        return path.exists() or (bool(re.search(r"[{*?[]", path.name)) and path.parent.exists())


def warnings(cfg: Any) -> Iterator[str]:
    """Yield warnings about settings that run but have been seen to fail, one per line."""
    loss, crops, ema = cfg.loss, cfg.crops, cfg.ema
    if loss.sharpening and loss.teacher_temp >= loss.student_temp:
        yield (
            f"loss.teacher_temp = {loss.teacher_temp}: not below loss.student_temp = {loss.student_temp}, so "
            "the teacher does not sharpen; expect a uniform collapse (loss = ln K)."
        )
    elif loss.sharpening and loss.teacher_temp > 0.06 and not _warms_up(loss):
        yield (
            f"loss.teacher_temp = {loss.teacher_temp}: constant values above 0.06 collapsed in the paper "
            "(k-NN 0.1 at 0.08); warm up: loss.warmup_teacher_temp=0.04 loss.warmup_teacher_temp_epochs=30."
        )
    if not loss.sharpening or loss.centering == "none":
        key = "loss.sharpening = false" if not loss.sharpening else "loss.centering = none"
        yield f"{key}: collapses on purpose, as in the paper's section 5.3."
    elif loss.centering == "mean" and loss.center_momentum >= 0.999:
        yield (
            f"loss.center_momentum = {loss.center_momentum}: the center is too slow; collapsed in the paper "
            "(k-NN 0.1). The paper uses 0.9."
        )
    if ema.momentum == 0:
        yield "ema.momentum = 0: the teacher is the student; collapsed in the paper (k-NN 0.1)."
    if ema.momentum == 1:
        yield "ema.momentum = 1: the teacher never moves, so the student learns a random network's output."
    if not crops.local_number and crops.global_scale[0] > 0.25:
        yield (
            f"crops.local_number = 0: without local crops the released code advises a wider area; "
            f"set crops.global_scale=[0.14,1] instead of {show(crops.global_scale)}."
        )
    if crops.local_number and crops.local_size > crops.global_size:
        yield f"crops.local_size = {crops.local_size}: larger than crops.global_size = {crops.global_size}."
    side = cfg.data.packed_side if issubclass(schema_of(cfg.data), StoredConfig) else None
    if side and side < crops.global_size:
        yield (
            f"data.packed_side = {side}: less than crops.global_size = {crops.global_size}, so that every "
            "global crop is enlarged."
        )
    smallest = min(crops.global_size, crops.local_size if crops.local_number else crops.global_size)
    patch = patch_size(cfg)
    if patch and (smallest // patch) ** 2 < 4:
        yield (
            f"crops: {smallest} pixels are {(smallest // patch) ** 2} patch of {patch}; use smaller patches "
            "or larger crops."
        )
    large_stem = schema_of(cfg.backbone) is TorchvisionConfig and cfg.backbone.stem == "imagenet"
    if large_stem and crops.global_size < 64:
        fix = "; use backbone.stem=small" if _is_resnet(cfg.backbone.name) else ""
        yield (
            f"backbone.name = {cfg.backbone.name}: its stem is made for images of 224 pixels, and crops of "
            f"{crops.global_size} shrink to a point{fix}."
        )


def _warms_up(loss: Any) -> bool:
    return loss.warmup_teacher_temp_epochs > 0 and loss.warmup_teacher_temp <= 0.06
