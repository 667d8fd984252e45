"""Backbones from timm and torchvision, with random weights and the library's own pooling.

Of a model by name only the classifier is removed. State-dict names stay, so that exported weights load into
the library's model. `small_resnet` is put together from torchvision's blocks.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any

import timm
import torchvision
from timm.layers import DropPath
from torch import nn
from torchvision.models.resnet import BasicBlock

from dino_exp.backbone.image_size import output_dim
from dino_exp.errors import UserError


def timm_backbone(*, name: str, drop_path_rate: float, in_channels: int, image_size: int) -> nn.Module:
    """Build a timm model without classifier, (B, C, H, W) -> (B, feature_dim).

    Models with a stored position embedding are built for any image size where they support it. timm then
    interpolates the embedding to the target size with antialiasing, unlike the released DINO code. Dropout
    that timm builds into a model is switched off, and stochastic depth has the given rate, whatever timm's
    own is: a teacher stays in train mode and has neither.
    Raises `UserError` for an unknown name, for stochastic depth that the model does not have, and for a model
    that does not accept images of `image_size`.
    """
    if not timm.is_model(name):
        raise UserError(unknown_name(name, timm.list_models(), "timm"))

    def build(**options: Any) -> Any:
        return timm.create_model(name, pretrained=False, num_classes=0, in_chans=in_channels, **options)

    options = {
        "dynamic_img_size": True,
        "strict_img_size": False,  # what Swin called it before timm 1.0.31
        "img_size": image_size,
        "drop_path_rate": drop_path_rate,
    }
    model = build_with_accepted(build, options)
    switch_off_dropout(model, keep_depth=drop_path_rate > 0)
    if drop_path_rate > 0 and not any(is_stochastic_depth(module) for module in model.modules()):
        raise UserError(
            f"backbone.drop_path_rate = {drop_path_rate}: {name} has no stochastic depth; set it to 0."
        )
    model.feature_dim = output_dim(model, name=name, in_channels=in_channels, size=image_size)
    return model


def torchvision_backbone(*, name: str, stem: str, in_channels: int, image_size: int) -> nn.Module:
    """Build a torchvision classifier without its last linear layer, (B, C, H, W) -> (B, feature_dim).

    Dropout and stochastic depth, built into some of these models, are switched off: student and teacher are
    built by the same call, and a teacher has neither. If `in_channels` is not 3, the first convolution gets
    new random weights with the standard deviation of the old ones. `stem = small` gives a ResNet a 3x3
    stride-1 first convolution and no max-pool.
    Raises `UserError` for an unknown name, a vision transformer (one image size only), a small stem on
    anything but a ResNet, and a model that does not accept images of `image_size`.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise UserError(unknown_name(name, names, "torchvision"))
    if name.startswith("vit_"):
        raise UserError(
            f"backbone.name = {name}: torchvision's vision transformers take a single image size, and "
            "global and local crops differ; use backbone=vit_small or another vit_*, or a vit_* model of "
            "backbone=timm."
        )

    def build(**options: Any) -> Any:
        return torchvision.models.get_model(name, weights=None, **options)

    # for GoogLeNet and Inception: no auxiliary classifiers, and their default initialization
    model = build_with_accepted(build, {"aux_logits": False, "init_weights": True})
    remove_classifier(model)
    switch_off_dropout(model, keep_depth=False)
    if stem == "small":
        if not isinstance(model, torchvision.models.ResNet):
            raise UserError(
                f"backbone.stem = small: only for ResNets, which backbone.name = {name} is not; use imagenet."
            )
        small_resnet_stem(model, in_channels)
    elif in_channels != 3:
        replace_first_convolution(model, in_channels)
    model.feature_dim = output_dim(model, name=name, in_channels=in_channels, size=image_size)
    return model


def small_resnet(*, width: int, in_channels: int, image_size: int) -> nn.Module:
    """Build a ResNet for images of some 32 pixels, (B, C, H, W) -> (B, 4 * width).

    A 5x5 stem and three of torchvision's basic blocks (He et al. 2016, figure 5 left) with `width`, 2 * width
    and 4 * width channels. The stem, the second and the third block halve the image.
    """

    def halved(before: int) -> nn.Module:
        after = 2 * before
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after))
        return BasicBlock(before, after, 2, shortcut)

    model = nn.Sequential(
        nn.Conv2d(in_channels, width, 5, stride=2, padding=2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        BasicBlock(width, width),
        halved(width),
        halved(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    dim = output_dim(model, name="resnet_micro", in_channels=in_channels, size=image_size)
    model.feature_dim = dim  # type: ignore[assignment]  # a plain attribute
    return model


def unknown_name(name: str, names: Iterable[str], library: str) -> str:
    """Return the message for a model name that the library does not have."""
    similar = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(similar)}?" if similar else f"see {library}'s list_models()."
    return f"backbone.name = {name}: no such {library} model; {meant}"


def build_with_accepted(build: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Build with those of the options that the model's constructor accepts."""
    accepted = dict(options)
    while True:
        try:
            return build(**accepted)
        except TypeError as error:
            # the constructors' signatures end in **kwargs, so only their error says which keys they refuse
            refused = [key for key in accepted if re.search(rf"\b{key}\b", str(error))]
            if "unexpected keyword" not in str(error) or not refused:
                raise
            for key in refused:
                del accepted[key]


def switch_off_dropout(model: nn.Module, *, keep_depth: bool) -> None:
    """Set every rate of dropout in a library's model to 0, and unless `keep_depth` of stochastic depth too.

    The libraries keep rates as numbers: in modules for dropout of activations, paths, blocks or tokens, and
    in attributes such as `drop_rate` that a forward pass gives to a function.
    """
    for module in model.modules():
        is_dropout = re.search("drop|stochastic", type(module).__name__, re.IGNORECASE) is not None
        for name, value in list(vars(module).items()):
            is_rate = "drop" in name or (is_dropout and name in ("p", "prob"))
            is_depth = isinstance(module, DropPath) or "drop_path" in name
            if is_rate and isinstance(value, float) and not (keep_depth and is_depth):
                setattr(module, name, 0.0)


def is_stochastic_depth(module: nn.Module) -> bool:
    """Return whether a module of a timm model drops paths."""
    return isinstance(module, DropPath) and module.drop_prob > 0


def remove_classifier(model: nn.Module) -> None:
    """Replace the last linear layer (SqueezeNet: convolution) of a torchvision model by the identity."""
    candidates = [
        path
        for path, module in model.named_modules()
        if path.partition(".")[0] in ("fc", "classifier", "head", "heads")
        and isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    model.set_submodule(candidates[-1], nn.Identity())


def small_resnet_stem(model: nn.Module, in_channels: int) -> None:
    """Give a ResNet the stem for 32-pixel images, 3x3 with stride 1, no max-pool (He et al. 2016, 4.2)."""
    convolution = nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = convolution
    model.maxpool = nn.Identity()


def replace_first_convolution(model: nn.Module, in_channels: int) -> None:
    """Give the model's first convolution another number of input channels, with new random weights."""
    path, old = next((path, m) for path, m in model.named_modules() if isinstance(m, nn.Conv2d))
    kept = ("out_channels", "kernel_size", "stride", "padding", "dilation")
    new = nn.Conv2d(in_channels, bias=old.bias is not None, **{name: getattr(old, name) for name in kept})
    nn.init.normal_(new.weight, std=old.weight.std().item())
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    model.set_submodule(path, new)
