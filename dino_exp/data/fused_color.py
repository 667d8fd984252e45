"""The color steps of `augment` as two passes over the pixels and a blur, each of which compiles to one loop.

Brightness, contrast, saturation and grayscale are all x ← gain·x + share·luminance(x) + offset, clamped to
0–1, with numbers per crop (Haeberli 1993). So any order of the four jitter steps is: up to three such
steps, the hue, up to three more. Crops that skip a step get the numbers that change nothing; no crop takes a
branch, and no intermediate image is written to memory. Contrast needs the mean luminance of the image before
it, which is the first pass. `crop_steps` has the definition, step by step; a test keeps both equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SLOTS = 3
"""Steps before the hue, and as many after it."""
ALL_SLOTS = tuple(range(2 * SLOTS))
SLOTS_BEFORE_CONTRAST = (0, 1, SLOTS, SLOTS + 1)
"""Where brightness and saturation can be if the contrast comes later."""


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


class Measured(NamedTuple):
    """Crops whose mean luminance before the contrast is needed."""

    chosen: Tensor
    """int64 (n,), of all N crops."""
    earlier: Steps
    """Their steps before the contrast."""


def jitter_steps(jittered: Tensor, order: Tensor, factors: Tensor) -> tuple[Steps, Measured, Measured]:
    """Compute the numbers of the color jitter, and those of its part before the contrast.

    Args:
        jittered: bool (N,).
        order: int64 (N, 4), the step (0 brightness, 1 contrast, 2 saturation, 3 hue) of each turn.
        factors: (N, 4) brightness, contrast and saturation factors, and hue shift.

    Returns:
        The jitter of all crops; and the crops whose contrast comes before the hue, then those where it comes
        after it.
    """
    n = len(order)
    factors = torch.where(jittered[:, None], factors, factors.new_tensor([1, 1, 1, 0]))
    turn = order.argsort(1)
    slot = torch.where(turn < turn[:, 3:], turn, turn - turn[:, 3:] + SLOTS - 1)[:, :3]
    rest = 1 - factors[:, :3]
    gain = torch.ones(n, 2 * SLOTS).scatter_(1, slot, factors[:, :3])
    offset = torch.zeros(n, 2 * SLOTS).scatter_(1, slot[:, 1:2], rest[:, 1:2])
    share = torch.zeros(n, 2 * SLOTS).scatter_(1, slot[:, 2:3], rest[:, 2:3])
    steps = Steps(gain, share, offset, factors[:, 3])
    before = torch.arange(2 * SLOTS) < slot[:, 1:2]
    earlier = Steps(
        torch.where(before, gain, 1.0), torch.where(before, share, 0.0), torch.zeros_like(offset), steps.hue
    )
    contrasted, hue_first = offset.any(1), slot[:, 1] >= SLOTS
    parts = []
    for chosen in (contrasted & ~hue_first, contrasted & hue_first):
        index = chosen.nonzero().squeeze(1)
        parts.append(Measured(index, Steps(*(numbers[index] for numbers in earlier))))
    return steps, parts[0], parts[1]


def mean_luminance(crops: Tensor, steps: Steps, with_hue: bool) -> Tensor:
    """Compute the mean luminance (N,) of crops (N, 3, S, S), uint8 or in 0–1, after what precedes contrast.

    with_hue: whether the hue precedes it; otherwise all steps are before the place of the hue.
    """
    slots = [slot for slot in SLOTS_BEFORE_CONTRAST if with_hue or slot < SLOTS]
    return _luminance(_jitter(_planes(crops), steps, slots)).mean((1, 2))


def color(
    crops: Tensor, steps: Steps, gray: Tensor, solarized: Tensor, mean: Tensor, inverse_std: Tensor
) -> Tensor:
    """Apply jitter, grayscale, solarization and normalization in one pass.

    Args:
        crops: (N, 3, S, S), uint8 or in 0–1.
        steps: with offsets already multiplied by the mean luminance.
        gray, solarized: bool (N,).
        mean: (3,).
        inverse_std: 1 / std (3,), as a division takes ten times a product's time.

    Returns:
        float32 (N, 3, S, S).
    """
    planes = _jitter(_planes(crops), steps, ALL_SLOTS)
    luminance, gray, solarized = _luminance(planes), _per_crop(gray), _per_crop(solarized)
    planes = [torch.where(gray, luminance, plane) for plane in planes]
    planes = [torch.where(solarized & (plane >= 127.5 / 255), 1 - plane, plane) for plane in planes]
    return torch.stack([(plane - mean[i]) * inverse_std[i] for i, plane in enumerate(planes)], 1)


def _planes(crops: Tensor) -> list[Tensor]:
    return [plane.float() * (1 / 255) if crops.dtype == torch.uint8 else plane for plane in crops.unbind(1)]


def _per_crop(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1)


def _luminance(planes: Sequence[Tensor]) -> Tensor:
    """Return the luminance of PIL's mode L; numbers that are not written here are read for each pixel."""
    r, g, b = planes
    return 0.299 * r + 0.587 * g + 0.114 * b


def _jitter(planes: Sequence[Tensor], steps: Steps, slots: Sequence[int]) -> list[Tensor]:
    """Apply the steps of `slots` to values in 0–1, and the hue before the first of those that follow it.

    Between the steps the values are 1 - x: the clamp is then max(1 - max(x, 0), 0), which is three
    instructions, where `clamp` takes eight to keep NaNs. The luminance of 1 - x is 1 - luminance(x).
    """
    inverted = [1 - plane for plane in planes]
    for slot in slots:
        if slot == SLOTS:
            inverted = [1 - plane for plane in _hue([1 - plane for plane in inverted], _per_crop(steps.hue))]
        gain, share, offset = (_per_crop(numbers[:, slot]) for numbers in steps[:3])
        base = gain + share + offset - share * _luminance(inverted)
        inverted = [_inverted_clamp(base - gain * plane) for plane in inverted]
    return [1 - plane for plane in inverted]


def _inverted_clamp(x: Tensor) -> Tensor:
    """Return 1 - clamp(x, 0, 1)."""
    return torch.relu(1 - torch.relu(x))


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
        turned.append(value - chroma * (1 - _inverted_clamp(torch.minimum(position, 4 - position))))
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
        before_hue: Measured,
        after_hue: Measured,
        gray: Tensor,
        solarized: Tensor,
        mean: Tensor,
        std: Tensor,
    ) -> Tensor:
        """Apply jitter, grayscale, solarization and normalization; see the function `color`.

        The jitter is what `jitter_steps` returns, on the device of the crops.
        """
        luminance = torch.zeros(len(crops), device=crops.device)
        for (chosen, earlier), with_hue in ((before_hue, False), (after_hue, True)):
            if len(chosen):
                measured = crops.index_select(0, chosen)
                luminance[chosen] = self._mean_luminance(measured, earlier, with_hue)
        steps = steps._replace(offset=steps.offset * luminance[:, None])
        return self._color(crops, steps, gray, solarized, mean, 1 / std)

    def blur(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Filter rows and columns of x (N, C, S, S) with kernel (N, 2R + 1), edges repeated."""
        radius = kernel.shape[1] // 2
        padded = F.pad(x, [radius] * 4, mode="replicate")
        return self._down(self._across(padded, kernel), kernel)
