"""The image sizes that a backbone accepts, and the length of its feature vector."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dino_exp.errors import UserError


def check_image_sizes(
    backbone: nn.Module,
    *,
    name: str,
    in_channels: int,
    sizes: Iterable[int],
    keys: str = "crops.global_size and crops.local_size",
) -> None:
    """Raise `UserError` unless the backbone accepts square images of each of these sides, in pixels.

    Some library models accept one size only, which would otherwise fail at the first local crop. Costs one
    forward pass of two images per size; weights, buffers and random numbers do not change.
    """
    for size in sizes:
        output_dim(backbone, name=name, in_channels=in_channels, size=size, keys=keys)


def output_dim(
    backbone: nn.Module,
    *,
    name: str,
    in_channels: int,
    size: int,
    keys: str = "crops.global_size and crops.local_size",
) -> int:
    """Return the length of the backbone's feature vector for an image of `size` x `size` pixels.

    Raises `UserError` if it does not accept this size or does not return one vector per image. `keys` are
    the configuration keys that set the size, for the message.
    """
    weight = next(backbone.parameters())
    images = torch.zeros(2, in_channels, size, size, device=weight.device, dtype=weight.dtype)
    was_training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            output = backbone(images)
    except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"backbone.name = {name}: cannot take images of {size}x{size} pixels ({reason}). Set {keys} to "
            "a size that it accepts, or choose a backbone for any size: a vit_*, a ResNet, or one of timm's "
            "vit, xcit, swin and convnext models."
        ) from error
    finally:
        backbone.train(was_training)
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(
            f"backbone.name = {name}: returns {shape} for two images, and a backbone must return one vector "
            "for each; choose a classification model."
        )
    return output.shape[1]
