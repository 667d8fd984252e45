"""The augmentation of cut crops: flips, turns, channel drop, jitter, grayscale, blur, solarize, normalize.

The order and the strengths are the released code's, which has one flip, no turns, and RGB images only.
Parameters are drawn per crop from uniform numbers in the loader; the pixels are changed here in batches on
the training device. Values stay in floating point between the steps, where PIL rounds to bytes.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch._dynamo.exc import TorchDynamoException

from dino_exp.data.fused_color import LUMINANCE, FusedColor, jitter_steps

log = logging.getLogger(__name__)

FLIP, ROTATION, JITTER, ORDER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY, SIGMA, SOLARIZE = range(11)
"""Columns of the parameter table. ORDER is an index of `ORDERS`."""
RELEASED_COLUMNS = 11
VERTICAL_FLIP, TURNS, OF_CHANNELS = range(RELEASED_COLUMNS, RELEASED_COLUMNS + 3)
"""Further columns, where a step that the released code lacks is on. From OF_CHANNELS on there are three per
channel: whether each is dropped, then all brightness factors, then all contrast factors."""

ORDERS = tuple(itertools.permutations(range(4)))
"""The orders of brightness, contrast, saturation and hue, by their numbers in the table."""


class Augment:
    """The photometric half of the released augmentation; see `AugmentConfig` for each argument.

    Args:
        channels: channels of an image. Saturation, hue and luminance need three and are skipped otherwise.
        mean, std: per channel, of values in 0–1, for the last step.
    """

    def __init__(
        self,
        *,
        vertical_flip: float,
        quarter_turns: float,
        flip: float,
        rotation: float,
        channel_drop: float,
        jitter: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        per_channel: bool,
        gray: float,
        gray_method: str,
        blur: list[float],
        blur_sigma: list[float],
        solarize: float,
        channels: int,
        mean: list[float],
        std: list[float],
    ) -> None:
        self.vertical_flip, self.quarter_turns, self.channel_drop = vertical_flip, quarter_turns, channel_drop
        self.flip, self.rotation, self.jitter = flip, rotation, jitter
        self.strengths, self.per_channel = np.array([brightness, contrast, saturation, hue]), per_channel
        self.gray, self.blur, self.blur_sigma, self.solarize = gray, blur, blur_sigma, solarize
        self.channels, self.rgb = channels, channels == 3
        self.gray_from_mean = gray_method == "average"
        further = per_channel or max(vertical_flip, quarter_turns, channel_drop) > 0
        self.uniforms = OF_CHANNELS + 3 * channels if further else RELEASED_COLUMNS
        """How many uniform numbers one crop uses, and columns its parameters have."""
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        # One radius for all crops, so that a crop does not depend on the others in its batch.
        self.blur_radius = max(1, math.ceil(3 * blur_sigma[1]))
        self._fused: FusedColor | None = None

    @property
    def skipped_steps(self) -> list[str]:
        """Steps that are skipped because the images are not RGB."""
        gray = 0 if self.gray_from_mean else self.gray
        wanted = {"saturation": self.strengths[2], "hue": self.strengths[3], "grayscale": gray}
        return [] if self.rgb else [step for step, strength in wanted.items() if strength > 0]

    def parameters(self, uniform: np.ndarray) -> np.ndarray:
        """Compute the parameters of the crops of one or more images.

        Args:
            uniform: (crops, images, `uniforms`) numbers in [0, 1); crops 0 and 1 are the global ones.

        Returns:
            float32 (crops, images, `uniforms`), columns as named at the top of this module.
        """
        u = np.moveaxis(uniform, -1, 0)
        table = np.zeros(uniform.shape, np.float32)
        table[..., FLIP] = u[0] < self.flip
        table[..., ROTATION] = (2 * u[1] - 1) * self.rotation
        table[..., JITTER] = u[2] < self.jitter
        table[..., ORDER] = np.floor(u[3] * 24)
        factors = (2 * np.moveaxis(u[4:8], 0, -1) - 1) * self.strengths
        table[..., BRIGHTNESS : HUE + 1] = factors + np.array([1, 1, 1, 0])
        table[..., GRAY] = u[8] < self.gray
        probability = np.full(len(table), self.blur[2])
        probability[:2] = self.blur[:2]
        # One uniform number decides whether to blur and, rescaled, how much.
        chosen = u[9] < probability[:, None]
        share = u[9] / np.maximum(probability, 1e-12)[:, None]
        low, high = self.blur_sigma
        table[..., SIGMA] = np.where(chosen, low + share * (high - low), 0)
        table[1, :, SOLARIZE] = u[10][1] < self.solarize
        if self.uniforms > RELEASED_COLUMNS:
            table[..., VERTICAL_FLIP] = u[VERTICAL_FLIP] < self.vertical_flip
            share = u[TURNS] / max(self.quarter_turns, 1e-12)
            table[..., TURNS] = np.where(share < 1, np.floor(share * 4), 0)
            drop, *jitters = np.split(uniform[..., OF_CHANNELS:], 3, axis=-1)
            # the channel with the largest number stays
            table[..., self.dropped] = (drop < self.channel_drop) & (drop < drop.max(-1, keepdims=True))
            for columns, number, strength in zip(self.factors, jitters, self.strengths, strict=False):
                table[..., columns] = 1 + (2 * number - 1) * strength
        return table

    @property
    def dropped(self) -> slice:
        """Columns that say which channels are dropped."""
        return slice(OF_CHANNELS, OF_CHANNELS + self.channels)

    @property
    def factors(self) -> tuple[slice, slice]:
        """Columns of the brightness and the contrast factors of each channel, used with `per_channel`."""
        first, second, third = (OF_CHANNELS + number * self.channels for number in (1, 2, 3))
        return slice(first, second), slice(second, third)

    def fuse(self) -> None:
        """Use the compiled form of the steps for RGB crops from now on: the same values, in fewer passes.

        This pays after some thousand photographs. Where it cannot be compiled (on a CPU this needs a C++
        compiler), a warning is logged and the steps are done one by one; so are those of other channels,
        jitter per channel, and gray from the mean.
        """
        fusible = self.rgb and not self.per_channel and not self.gray_from_mean
        self._fused = FusedColor() if fusible else None

    @torch.no_grad()
    def __call__(self, crops: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Augment and normalize crops of one size.

        Args:
            crops: uint8 (N, C, S, S) on the training device.
            parameters: float32 (N, `uniforms`) on the CPU, so that choosing the crops of a step does not wait
                for the device.

        Returns:
            float32 (N, C, S, S) on the device of `crops`.
        """
        if self.uniforms > RELEASED_COLUMNS:
            crops = self._flip_and_rotate(turned(crops, parameters), parameters)
            dropped = parameters[:, self.dropped, None, None] > 0
            crops.masked_fill_(dropped.to(crops.device), 0)
        else:
            crops = self._flip_and_rotate(crops, parameters)
        if self._fused is not None:
            try:
                return self._in_two_passes(self._fused, crops, parameters)
            except TorchDynamoException as error:
                self._fused = None
                log.warning("Augmenting color uncompiled, several times slower: %s", _reason(error))
        return self._step_by_step(crops, parameters)

    def normalize(self, crops: torch.Tensor) -> torch.Tensor:
        """Normalize crops (N, C, S, S), uint8 or in 0–1, to float32, without the other steps."""
        x = _in_unit_range(crops)
        return (x - self.mean.to(x.device)) / self.std.to(x.device)

    def _step_by_step(self, crops: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Augment by the definition: each step changes the crops that it was drawn for."""
        x = _in_unit_range(crops)
        if self.jitter > 0:
            x = self._color_jitter(x, parameters)
        if self.gray_from_mean:
            _change(x, parameters[:, GRAY] > 0, lambda part: part.mean(1, keepdim=True).expand_as(part))
        elif self.rgb:
            _change(x, parameters[:, GRAY] > 0, lambda part: _gray(part).expand_as(part))
        _change(x, parameters[:, SIGMA] > 0, self._blur, parameters[:, SIGMA])
        _change(x, parameters[:, SOLARIZE] > 0, solarize)
        return x.sub_(self.mean.to(x.device)).div_(self.std.to(x.device))

    def _in_two_passes(
        self, fused: FusedColor, crops: torch.Tensor, parameters: torch.Tensor
    ) -> torch.Tensor:
        """Augment by compiled code, with the same values as `_step_by_step`.

        The blur comes last, because it commutes with the normalization. It does not commute with the
        solarization, which crops that have both get after the blur.
        """
        device = crops.device
        blurred, solarized = parameters[:, SIGMA] > 0, parameters[:, SOLARIZE] > 0
        order = torch.tensor(ORDERS)[parameters[:, ORDER].long()]
        steps, earlier = jitter_steps(parameters[:, JITTER] > 0, order, parameters[:, BRIGHTNESS : HUE + 1])
        x = fused.color(
            crops,
            steps,
            earlier,
            (parameters[:, GRAY] > 0).to(device),
            (solarized & ~blurred).to(device),
            self.mean.flatten().to(device),
            self.std.flatten().to(device),
        )
        rows = blurred.nonzero().squeeze(1)
        if len(rows):
            where = rows.to(device)
            part = fused.blur(x[where], gaussian_kernel(parameters[rows, SIGMA], self.blur_radius).to(device))
            _change(part, solarized[rows], self._solarize_normalized)
            x[where] = part
        return x

    def _solarize_normalized(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        return (solarize(x * std + mean) - mean) / std

    def _blur(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return gaussian_blur(x, gaussian_kernel(sigma, self.blur_radius))

    def _flip_and_rotate(self, crops: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return a copy: flipped bytes, or values in 0–1 if crops are rotated."""
        if self.rotation == 0:
            # Selecting entire crops copies them; flipping some in place takes four times as long.
            selected = torch.arange(len(crops)) + len(crops) * (parameters[:, FLIP] > 0)
            return torch.cat([crops, crops.flip(-1)]).index_select(0, selected.to(crops.device))
        x = _in_unit_range(crops)
        angle = torch.deg2rad(parameters[:, ROTATION])
        side = 1 - 2 * parameters[:, FLIP]
        zero = torch.zeros_like(angle)
        rows = [side * angle.cos(), -side * angle.sin(), zero, angle.sin(), angle.cos(), zero]
        matrix = torch.stack(rows, 1).view(-1, 2, 3).to(x.device)
        grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _color_jitter(self, x: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        order = torch.tensor(ORDERS)[parameters[:, ORDER].long()]
        jittered = parameters[:, JITTER] > 0
        factors = [parameters[:, column] for column in range(BRIGHTNESS, HUE + 1)]
        steps: list[Callable[..., torch.Tensor]] = [brightness, contrast, saturation, hue]
        if self.per_channel:
            factors[:2] = [parameters[:, columns] for columns in self.factors]
            steps[1] = contrast_of_channels
        for turn in range(4):
            for number, step in enumerate(steps):
                if self.strengths[number] > 0 and (self.rgb or number < 2):
                    _change(x, jittered & (order[:, turn] == number), step, factors[number])
        return x


def turned(crops: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Return a copy of square crops (N, C, S, S) with the vertical flips and the quarter turns of each."""
    crops = crops.clone()
    _change(crops, parameters[:, VERTICAL_FLIP] > 0, lambda part: part.flip(-2))
    for turns in (1, 2, 3):
        _change(crops, parameters[:, TURNS] == turns, functools.partial(torch.rot90, k=turns, dims=(-2, -1)))
    return crops


def _change(
    x: torch.Tensor, chosen: torch.Tensor, step: Callable[..., torch.Tensor], *values: torch.Tensor
) -> None:
    """Apply a step with its per-crop values in place to the chosen crops only."""
    index = chosen.nonzero().squeeze(1)
    if len(index):
        where = index.to(x.device)
        x[where] = step(x[where], *(value[index].to(x.device) for value in values))


def _in_unit_range(crops: torch.Tensor) -> torch.Tensor:
    """Convert bytes to float32 in 0–1; floating-point values stay as they are."""
    return crops if crops.is_floating_point() else crops.float().div_(255)


def _reason(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if "rror" in line), type(error).__name__)


def _gray(x: torch.Tensor) -> torch.Tensor:
    """Return the luminance (N, 1, S, S) as in PIL's mode L, or the mean over channels if not RGB."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    weight = torch.tensor(LUMINANCE, device=x.device).view(3, 1, 1)
    return (x * weight).sum(1, keepdim=True)


def _blend(x: torch.Tensor, other: torch.Tensor | float, factor: torch.Tensor) -> torch.Tensor:
    factor = factor.view(len(factor), -1, 1, 1)
    return (x * factor + other * (1 - factor)).clamp_(0, 1)


def brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with black; x (N, C, S, S) in 0–1, factor (N,) or, for each channel, (N, C)."""
    return _blend(x, 0.0, factor)


def contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the mean luminance of each crop."""
    return _blend(x, _gray(x).mean((1, 2, 3), keepdim=True), factor)


def contrast_of_channels(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend each channel with its own mean; factor (N, C)."""
    return _blend(x, x.mean((2, 3), keepdim=True), factor)


def saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the crop's own grayscale; three channels."""
    return _blend(x, _gray(x), factor)


def hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
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
    offset = torch.tensor([5.0, 3.0, 1.0], device=x.device).view(3, 1, 1)
    position = torch.remainder(sixths[:, None] + offset, 6)
    return value[:, None] - chroma[:, None] * torch.minimum(position, 4 - position).clamp_(0, 1)


def gaussian_kernel(sigma: torch.Tensor, radius: int) -> torch.Tensor:
    """Return Gaussian weights for σ = sigma (N,) pixels at −radius … radius, (N, 2 · radius + 1)."""
    at = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (at / sigma[:, None]) ** 2)
    return kernel / kernel.sum(1, keepdim=True)


def gaussian_blur(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Filter rows and columns of x (N, C, S, S) with kernel (N, 2R + 1), edges repeated."""
    n, c, height, width = x.shape
    kernel = kernel.repeat_interleave(c, 0)
    planes = F.pad(x.reshape(1, n * c, height, width), [kernel.shape[1] // 2] * 4, mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=n * c)
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=n * c)
    return planes.view(n, c, height, width)


def solarize(x: torch.Tensor) -> torch.Tensor:
    """Invert the values that round to 128 / 255 and above."""
    return torch.where(x >= 127.5 / 255, 1 - x, x)
