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
from torch import Tensor

from dino_exp.data import crop_steps
from dino_exp.data.fused_color import FusedColor, jitter_steps
from dino_exp.data.operations import Operation, change, do

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
    def __call__(self, crops: Tensor, parameters: Tensor) -> Tensor:
        """Augment and normalize crops of one size.

        Args:
            crops: uint8 (N, C, S, S) on the training device.
            parameters: float32 (N, `uniforms`) on the CPU, where the operations are planned.

        Returns:
            float32 (N, C, S, S) on the device of `crops`.
        """
        if self._fused is not None:
            try:
                return do(self._in_two_passes(self._fused, parameters), crops)
            except torch._dynamo.exc.TorchDynamoException as error:  # imported where it is needed: 2.6 s
                self._fused = None
                log.warning("Augmenting color uncompiled, several times slower: %s", _reason(error))
        return do(self._step_by_step(parameters), crops)

    @torch.no_grad()
    def normalize(self, crops: Tensor) -> Tensor:
        """Normalize crops (N, C, S, S), uint8 or in 0–1, to float32, without the other steps."""
        return do([Operation(crop_steps.normalized, (self.mean, self.std))], crops)

    def _step_by_step(self, parameters: Tensor) -> list[Operation]:
        """Plan the augmentation by its definition: each step changes the crops that it was drawn for."""
        operations = [*self._orientation(parameters), Operation(crop_steps.in_unit_range)]
        if self.jitter > 0:
            operations += self._color_jitter(parameters)
        if self.rgb or self.gray_from_mean:
            gray = crop_steps.mean_of_channels if self.gray_from_mean else crop_steps.luminance
            operations += change(gray, _where(parameters[:, GRAY] > 0))
        operations += self._blur(crop_steps.gaussian_blur, parameters)
        operations += change(crop_steps.solarize, _where(parameters[:, SOLARIZE] > 0))
        return [*operations, Operation(crop_steps.normalize_, (self.mean, self.std))]

    def _in_two_passes(self, fused: FusedColor, parameters: Tensor) -> list[Operation]:
        """Plan the augmentation by compiled code, with the same values as `_step_by_step`.

        The blur comes last, because it commutes with the normalization. It does not commute with the
        solarization, which crops that have both get after the blur.
        """
        gray, blurred, solarized = (parameters[:, column] > 0 for column in (GRAY, SIGMA, SOLARIZE))
        order = torch.tensor(ORDERS)[parameters[:, ORDER].long()]
        jitter = jitter_steps(parameters[:, JITTER] > 0, order, parameters[:, BRIGHTNESS : HUE + 1])
        scale = self.mean.flatten(), self.std.flatten()
        return [
            *self._orientation(parameters),
            Operation(fused.color, (*jitter, gray, solarized & ~blurred, *scale)),
            *self._blur(fused.blur, parameters),
            *change(crop_steps.solarize_normalized, _where(solarized & blurred), self.mean, self.std),
        ]

    def _blur(self, blur: Callable[..., Tensor], parameters: Tensor) -> list[Operation]:
        blurred = _where(parameters[:, SIGMA] > 0)
        return change(blur, blurred, crop_steps.gaussian_kernel(parameters[blurred, SIGMA], self.blur_radius))

    def _orientation(self, parameters: Tensor) -> list[Operation]:
        """Plan turns and flips, which leave bytes as they are, a rotation, and the drop of channels.

        The first operation copies the crops.
        """
        operations = []
        further = self.uniforms > RELEASED_COLUMNS
        if further:
            operations += [Operation(torch.clone), *_quarter_turns(parameters)]
        if self.rotation == 0:
            count = len(parameters)
            flipped = torch.arange(count) + count * (parameters[:, FLIP] > 0)
            operations.append(Operation(crop_steps.mirrored, (flipped,)))
        else:
            angle, side = torch.deg2rad(parameters[:, ROTATION]), 1 - 2 * parameters[:, FLIP]
            zero = torch.zeros_like(angle)
            rows = [side * angle.cos(), -side * angle.sin(), zero, angle.sin(), angle.cos(), zero]
            operations.append(Operation(crop_steps.rotated, (torch.stack(rows, 1).view(-1, 2, 3),)))
        if further:
            dropped = parameters[:, self.dropped, None, None] > 0
            operations.append(Operation(crop_steps.drop_, (dropped,)))
        return operations

    def _color_jitter(self, parameters: Tensor) -> list[Operation]:
        order = torch.tensor(ORDERS)[parameters[:, ORDER].long()]
        jittered = parameters[:, JITTER] > 0
        factors = [parameters[:, column] for column in range(BRIGHTNESS, HUE + 1)]
        steps: list[Callable[..., Tensor]] = [
            crop_steps.brightness,
            crop_steps.contrast,
            crop_steps.saturation,
            crop_steps.hue,
        ]
        if self.per_channel:
            factors[:2] = [parameters[:, columns] for columns in self.factors]
            steps[1] = crop_steps.contrast_of_channels
        operations = []
        for turn in range(4):
            for number, step in enumerate(steps):
                if self.strengths[number] > 0 and (self.rgb or number < 2):
                    index = _where(jittered & (order[:, turn] == number))
                    operations += change(step, index, factors[number][index])
        return operations


def _quarter_turns(parameters: Tensor) -> list[Operation]:
    """Plan the vertical flips and the quarter turns."""
    operations = change(crop_steps.upside_down, _where(parameters[:, VERTICAL_FLIP] > 0))
    for turns in (1, 2, 3):
        turn = functools.partial(torch.rot90, k=turns, dims=(-2, -1))
        operations += change(turn, _where(parameters[:, TURNS] == turns))
    return operations


def _where(chosen: Tensor) -> Tensor:
    """Return the indices (n,) of the chosen crops; chosen is bool (N,) on the CPU."""
    return chosen.nonzero().squeeze(1)


def _reason(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if "rror" in line), type(error).__name__)
