"""Attention of the class token in the last block, and how much of it is on the object (DINO, figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_exp.data.source import ImageSource
from dino_exp.errors import UserError
from dino_exp.eval.features import evaluating, resize_and_crop
from dino_exp.eval.subject import Subject


@dataclass(frozen=True)
class Attended:
    """Images as the network saw them, and the attention of its class token."""

    images: Tensor
    """uint8 (N, C, S, S)."""
    attention: Tensor
    """float32 (N, heads, h, w) over the patches, on the CPU."""
    masks: Tensor | None
    """float32 (N, S, S), the share of each pixel that the object covers; None without masks."""
    indices: list[int]
    """The source's index of each image."""


@dataclass(frozen=True)
class AttentionMass:
    """How well the attention finds the object; shares in 0–1, means over the images."""

    mass: float
    """Share of the attention (mean over heads, over the patches) inside the mask."""
    area: float
    """Share of the image inside the mask, which is the mass of uniform attention."""
    gaussian_mass: float
    """Mass of a Gaussian at the image's center, sigma a quarter of its side: what centering alone gives."""
    auc: float
    """Probability that a patch of the object (more than half covered) has more attention than one outside."""
    gaussian_auc: float
    """The AUC of the Gaussian."""
    images: int
    """Images in the means; those without both kinds of patch count for the masses only."""

    def sentence(self, untrained: AttentionMass | None = None) -> str:
        """Return the numbers and their baselines as a caption."""
        before = f"untrained {untrained.mass:.0%}, " if untrained else ""
        auc_before = f"untrained {untrained.auc:.2f}, " if untrained else ""
        return (
            f"attention inside the mask {self.mass:.0%} ({before}centered Gaussian {self.gaussian_mass:.0%}, "
            f"mask area {self.area:.0%}); AUC {self.auc:.2f} "
            f"({auc_before}centered Gaussian {self.gaussian_auc:.2f})"
        )


def patch_attention(backbone: nn.Module, images: Tensor) -> Tensor:
    """Return the attention of the last block's class token to the patches, float32 (B, heads, h, w), CPU.

    images: normalized (B, C, H, W) on the backbone's device. Raises UserError for backbones without
    `class_attention`.
    """
    class_attention = getattr(backbone, "class_attention", None)
    if class_attention is None:
        raise UserError(
            f"{type(backbone).__name__} has no class-token attention; use a ViT of this project, such as "
            f"backbone=vit_small."
        )
    with evaluating(backbone):
        attention = class_attention(images).float().cpu()
    return attention.clone()  # an ordinary tensor, not one of inference mode


def enlarged(values: Tensor, size: torch.Size) -> Tensor:
    """Enlarge values (..., h, w) to (..., H, W), constant on each patch (nearest); bool stays bool."""
    flat = values.reshape(1, -1, *values.shape[-2:]).float()
    sized = F.interpolate(flat, size=size, mode="nearest-exact").reshape(*values.shape[:-2], *size)
    return sized > 0.5 if values.dtype == torch.bool else sized


def attend(subject: Subject, source: ImageSource, indices: Sequence[int], batch_size: int = 64) -> Attended:
    """Return attention, images and masks of a source, for `attention_mass` and `plot_attention`.

    Masks are resized and cropped like their images. Unreadable images are skipped.
    """
    images, attention, kept = [], [], []
    for batch, readable in subject.still_images(source, indices, batch_size=batch_size):
        images.append(batch)
        attention.append(patch_attention(subject.backbone, subject.normalized(batch)))
        kept += readable
    if not kept:
        raise UserError(f"None of {len(indices)} images could be read.")
    masks = None
    if source.has_masks:
        masks = torch.stack([_coverage(source.mask(index), subject) for index in kept])
    return Attended(torch.cat(images), torch.cat(attention), masks, kept)


def _coverage(mask: Tensor, subject: Subject) -> Tensor:
    shares = mask.float().unsqueeze(0)
    return resize_and_crop(shares, subject.image_size, subject.crop_ratio, "bilinear")[0]


def attention_mass(attention: Tensor, masks: Tensor) -> AttentionMass:
    """Compare attention (N, heads, h, w) with masks (N, H, W), bool or shares in 0–1.

    A patch's share of the object is the mean of the mask over it, so patches on the outline count by area.
    """
    patches = attention.double().mean(dim=1)
    height, width = patches.shape[-2:]
    coverage = F.adaptive_avg_pool2d(masks.double().unsqueeze(1), (height, width)).squeeze(1)
    gaussian = centered_gaussian(height, width).expand_as(patches)
    return AttentionMass(
        mass=_mass(patches, coverage),
        area=coverage.mean().item(),
        gaussian_mass=_mass(gaussian, coverage),
        auc=_mean_auc(patches, coverage > 0.5),
        gaussian_auc=_mean_auc(gaussian, coverage > 0.5),
        images=len(patches),
    )


def centered_gaussian(height: int, width: int) -> Tensor:
    """Return exp(−(x² + y²) / 2σ²) at the patch centers, (height, width), with σ a quarter of the side."""
    y, x = (torch.arange(n, dtype=torch.float64).add(0.5).div(n).sub(0.5).div(0.25) for n in (height, width))
    return torch.exp(-(y[:, None] ** 2 + x[None, :] ** 2) / 2)


def _mass(attention: Tensor, coverage: Tensor) -> float:
    """Return the share of the attention (N, h, w) that is on the object, the mean over images."""
    inside = (attention * coverage).sum(dim=(1, 2))
    return (inside / attention.sum(dim=(1, 2))).mean().item()


def _mean_auc(attention: Tensor, inside: Tensor) -> float:
    """Return the Mann–Whitney AUC (ties count half), the mean over images that have both kinds, or NaN."""
    areas = []
    for values, positive in zip(attention.flatten(1), inside.flatten(1), strict=True):
        if positive.all() or not positive.any():
            continue
        if not values.isfinite().all():
            return float("nan")
        beside = values[~positive].sort().values
        below = torch.searchsorted(beside, values[positive], right=False)
        not_above = torch.searchsorted(beside, values[positive], right=True)
        areas.append((below + not_above).double().mean().item() / (2 * len(beside)))
    return sum(areas) / len(areas) if areas else float("nan")
