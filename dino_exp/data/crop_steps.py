"""The steps of the augmentation as functions of a batch of crops; `augment` has their order.

What they need besides the crops is on the device of the crops.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_exp.data.decoding import LUMINANCE


def in_unit_range(crops: Tensor) -> Tensor:
    """Convert bytes to float32 in 0–1; floating-point values stay as they are."""
    return crops if crops.is_floating_point() else crops.float().div_(255)


def normalized(crops: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return normalized crops (N, C, S, S), uint8 or in 0–1; mean and std (C, 1, 1)."""
    return (in_unit_range(crops) - mean) / std


def normalize_(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize in place."""
    return x.sub_(mean).div_(std)


def mirrored(crops: Tensor, index: Tensor) -> Tensor:
    """Return the crops at `index` (N,) of the crops (N, C, S, S) followed by their mirror images.

    Selecting entire crops copies them; flipping some in place takes four times as long.
    """
    return torch.cat([crops, crops.flip(-1)]).index_select(0, index)


def upside_down(crops: Tensor) -> Tensor:
    """Return the crops upside down."""
    return crops.flip(-2)


def rotated(crops: Tensor, matrix: Tensor) -> Tensor:
    """Return the crops in 0–1, turned by matrices (N, 2, 3)."""
    x = in_unit_range(crops)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def drop_(crops: Tensor, dropped: Tensor) -> Tensor:
    """Set the dropped channels to 0 in place; dropped is bool (N, C, 1, 1)."""
    return crops.masked_fill_(dropped, 0)


def mean_of_channels(x: Tensor) -> Tensor:
    """Return the mean over the channels, (N, 1, S, S)."""
    return x.mean(1, keepdim=True)


def luminance(x: Tensor) -> Tensor:
    """Return the luminance (N, 1, S, S) as in PIL's mode L, or the mean over channels if not RGB."""
    if x.shape[1] != 3:
        return mean_of_channels(x)
    # no tensor of weights: making one would wait for a GPU
    r, g, b = x.split(1, 1)
    return (LUMINANCE[0] * r).add_(LUMINANCE[1] * g).add_(LUMINANCE[2] * b)


def _blend(x: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    factor = factor.view(len(factor), -1, 1, 1)
    return (x * factor + other * (1 - factor)).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; x (N, C, S, S) in 0–1, factor (N,) or, for each channel, (N, C)."""
    return _blend(x, 0.0, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luminance of each crop."""
    return _blend(x, luminance(x).mean((1, 2, 3), keepdim=True), factor)


def contrast_of_channels(x: Tensor, factor: Tensor) -> Tensor:
    """Blend each channel with its own mean; factor (N, C)."""
    return _blend(x, x.mean((2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the crop's own grayscale; three channels."""
    return _blend(x, luminance(x), factor)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue by `shift` (N,) of a full circle, value and saturation unchanged; three channels."""
    r, g, b = x.unbind(1)
    value, brightest = x.max(1)
    chroma = value - x.amin(1)
    safe = chroma.clamp_min(1e-8)
    sixths = torch.where(
        brightest == 0, (g - b) / safe, torch.where(brightest == 1, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    sixths = sixths + 6 * shift.view(-1, 1, 1)
    # The inverse of the hexagon: each channel falls from `value` by the chroma, a third of the circle apart.
    offset = torch.arange(5, 0, -2, dtype=x.dtype, device=x.device).view(3, 1, 1)
    position = torch.remainder(sixths[:, None] + offset, 6)
    return value[:, None] - chroma[:, None] * torch.minimum(position, 4 - position).clamp_(0, 1)


def gaussian_kernel(sigma: Tensor, radius: int) -> Tensor:
    """Return Gaussian weights for σ = sigma (N,) pixels at −radius … radius, (N, 2 · radius + 1)."""
    at = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    return kernel / kernel.sum(1, keepdim=True)


def gaussian_blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Filter rows and columns of x (N, C, S, S) with kernel (N, 2R + 1), edges repeated."""
    n, c, height, width = x.shape
    kernel = kernel.repeat_interleave(c, 0)
    planes = F.pad(x.reshape(1, n * c, height, width), [kernel.shape[1] // 2] * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=n * c)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=n * c)
    return planes.view(n, c, height, width)


def solarize(x: Tensor) -> Tensor:
    """Invert the values that round to 128 / 255 and above."""
    return torch.where(x >= 127.5 / 255, 1 - x, x)


def solarize_normalized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Solarize crops that are normalized already; mean and std (C, 1, 1)."""
    return (solarize(x * std + mean) - mean) / std
