"""The color steps of `augment` as two passes over the pixels and a blur, each of which compiles to one loop.

Brightness, contrast, saturation and grayscale are all x ← gain·x + share·luminance(x) + offset, clamped to
0–1, with numbers per crop (Haeberli 1993). So any order of the four jitter steps is: up to three such
steps, the hue, up to three more. Crops that skip a step get the numbers that change nothing; no crop takes a
branch, and no intermediate image is written to memory. Contrast needs the mean luminance of the image before
it, which is the first pass. `crop_steps` has the definition, step by step; a test keeps both equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SLOTS = 3
"""Steps before the hue, and as many after it."""
LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue, as in PIL's mode L."""


class Steps(NamedTuple):
    """Per-crop numbers of N crops."""

    gain: Tensor
    """(N, 6), for the steps before the hue and then after it; 1 without a step."""
    share: Tensor
    """(N, 6), the factor of the luminance; 0 without a step."""
    offset: Tensor
    """(N, 6), to be multiplied by the mean luminance; 0 without a step."""
    hue: Tensor
    """(N,), the hue shift as a share of the full circle."""


def jitter_steps(jittered: Tensor, order: Tensor, factors: Tensor) -> tuple[Steps, Tensor, Steps]:
    """Compute the numbers of the color jitter, and those of its part before the contrast.

    Args:
        jittered: bool (N,).
        order: int64 (N, 4), the step (0 brightness, 1 contrast, 2 saturation, 3 hue) of each turn.
        factors: (N, 4) brightness, contrast and saturation factors, and hue shift.

    Returns:
        The jitter of all crops; int64 (n,), the crops with contrast; and for those the part before it.
    """
    n = len(order)
    factors = torch.where(jittered[:, None], factors, factors.new_tensor([1, 1, 1, 0]))
    turn = order.argsort(1)
    slot = torch.where(turn < turn[:, 3:], turn, turn - turn[:, 3:] + SLOTS - 1)[:, :3]
    rest = 1 - factors[:, :3]
    gain = torch.ones(n, 2 * SLOTS).scatter_(1, slot, factors[:, :3])
    offset = torch.zeros(n, 2 * SLOTS).scatter_(1, slot[:, 1:2], rest[:, 1:2])
    share = torch.zeros(n, 2 * SLOTS).scatter_(1, slot[:, 2:3], rest[:, 2:3])
    before = torch.arange(2 * SLOTS) < slot[:, 1:2]
    earlier = Steps(
        torch.where(before, gain, 1.0),
        torch.where(before, share, 0.0),
        torch.zeros_like(offset),
        torch.where(slot[:, 1] >= SLOTS, factors[:, 3], 0.0),
    )
    contrasted = offset.any(1).nonzero().squeeze(1)
    return (
        Steps(gain, share, offset, factors[:, 3]),
        contrasted,
        Steps(*(numbers[contrasted] for numbers in earlier)),
    )


def mean_luminance(crops: Tensor, steps: Steps) -> Tensor:
    """Compute the mean luminance (N,) of crops (N, 3, S, S), uint8 or in 0–1, after `steps`."""
    return _luminance(_jitter(_planes(crops), steps)).mean((1, 2))


def color(crops: Tensor, steps: Steps, gray: Tensor, solarized: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Apply jitter, grayscale, solarization and normalization in one pass.

    Args:
        crops: (N, 3, S, S), uint8 or in 0–1.
        steps: with offsets already multiplied by the mean luminance.
        gray, solarized: bool (N,).
        mean, std: (3,).

    Returns:
        float32 (N, 3, S, S).
    """
    planes = _jitter(_planes(crops), steps)
    luminance, gray, solarized = _luminance(planes), _per_crop(gray), _per_crop(solarized)
    planes = [torch.where(gray, luminance, plane) for plane in planes]
    planes = [torch.where(solarized & (plane >= 127.5 / 255), 1 - plane, plane) for plane in planes]
    return torch.stack([(plane - mean[i]) / std[i] for i, plane in enumerate(planes)], 1)


def _planes(crops: Tensor) -> list[Tensor]:
    return [plane.float() / 255 if crops.dtype == torch.uint8 else plane for plane in crops.unbind(1)]


def _per_crop(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _luminance(planes: list[Tensor]) -> Tensor:
    r, g, b = planes
    return LUMINANCE[0] * r + LUMINANCE[1] * g + LUMINANCE[2] * b


def _jitter(planes: list[Tensor], steps: Steps) -> list[Tensor]:
    for slot in range(2 * SLOTS):
        if slot == SLOTS:
            planes = _hue(planes, _per_crop(steps.hue))
        gain, share, offset = (_per_crop(numbers[:, slot]) for numbers in steps[:3])
        base = _luminance(planes) * share + offset
        planes = [(plane * gain + base).clamp(0, 1) for plane in planes]
    return planes


def _hue(planes: list[Tensor], shift: Tensor) -> list[Tensor]:
    r, g, b = planes
    value = torch.maximum(torch.maximum(r, g), b)
    chroma = value - torch.minimum(torch.minimum(r, g), b)
    scale = 1 / chroma.clamp_min(1e-8)
    of_green_or_blue = torch.where(value == g, 2 + (b - r) * scale, 4 + (r - g) * scale)
    sixths = torch.where(value == r, (g - b) * scale, of_green_or_blue) + 6 * shift
    turned = []
    for offset in (5.0, 3.0, 1.0):
        position = sixths + offset
        position = position - 6 * torch.floor(position * (1 / 6))
        turned.append(value - chroma * torch.minimum(position, 4 - position).clamp(0, 1))
    return turned


def blur_across(padded: Tensor, kernel: Tensor) -> Tensor:
    """Filter the rows of crops padded by R on the left and right: (N, C, H, W + 2R) -> (N, C, H, W).

    kernel: (N, 2R + 1). A sum of shifted images takes a third of a grouped convolution's time once compiled.
    """
    width = padded.shape[3] - kernel.shape[1] + 1
    return _weighted_sum([padded[..., tap : tap + width] for tap in range(kernel.shape[1])], kernel)


def blur_down(padded: Tensor, kernel: Tensor) -> Tensor:
    """Filter the columns of crops padded by R above and below: (N, C, H + 2R, W) -> (N, C, H, W)."""
    height = padded.shape[2] - kernel.shape[1] + 1
    return _weighted_sum([padded[:, :, tap : tap + height] for tap in range(kernel.shape[1])], kernel)


def _weighted_sum(shifted: list[Tensor], kernel: Tensor) -> Tensor:
    total = shifted[0] * kernel[:, 0].view(-1, 1, 1, 1)
    for tap, part in enumerate(shifted[1:], start=1):
        total = total + part * kernel[:, tap].view(-1, 1, 1, 1)
    return total


class FusedColor:
    """The functions of this module, compiled for any number and size of crops at the first call.

    Compiling takes some ten seconds; PyTorch keeps the result on disk for later runs.
    """

    def __init__(self) -> None:
        self._mean_luminance = torch.compile(mean_luminance, dynamic=True)
        self._color = torch.compile(color, dynamic=True)
        self._across = torch.compile(blur_across, dynamic=True)
        self._down = torch.compile(blur_down, dynamic=True)

    def color(
        self,
        crops: Tensor,
        steps: Steps,
        contrasted: Tensor,
        earlier: Steps,
        gray: Tensor,
        solarized: Tensor,
        mean: Tensor,
        std: Tensor,
    ) -> Tensor:
        """Apply jitter, grayscale, solarization and normalization; see the function `color`.

        The jitter is what `jitter_steps` returns, on the device of the crops.
        """
        luminance = torch.zeros(len(crops), device=crops.device)
        if len(contrasted):
            luminance[contrasted] = self._mean_luminance(crops.index_select(0, contrasted), earlier)
        steps = steps._replace(offset=steps.offset * luminance[:, None])
        return self._color(crops, steps, gray, solarized, mean, std)

    def blur(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Filter rows and columns of x (N, C, S, S) with kernel (N, 2R + 1), edges repeated."""
        radius = kernel.shape[1] // 2
        padded = F.pad(x, [radius] * 4, mode="replicate")
        return self._down(self._across(padded, kernel), kernel)
