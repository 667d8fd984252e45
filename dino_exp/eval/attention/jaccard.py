"""Attention as a mask: the patches that hold most of it, and their overlap with objects (DINO, figure 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_exp.data.pillow_files import opened_image
from dino_exp.errors import UserError
from dino_exp.eval.attention.attend import AttentionMass, attention_mass, centered_gaussian, enlarged

OBJECT, VOID = 1, 255
"""Values of a mask; 0 is background. Void is ignored, such as the outlines of VOC."""
MOST_INDEX = 100
"""Greatest gray value that is the index of an object; greater ones are brightness. VOC has 20, COCO 90."""


def keep_mass(attention: Tensor, mass: float) -> Tensor:
    """Return the fewest patches that hold at least the share `mass` of the attention: bool (..., h, w).

    As in the released `visualize_attention.py`: each map is sorted in ascending order and summed, and patches
    are kept from where the sum exceeds 1 - mass. Of equal patches the later ones are kept; of NaN none.
    """
    values, order = attention.double().flatten(-2).sort(dim=-1, stable=True)
    share = values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, share > 1 - mass)
    return kept.unflatten(-1, attention.shape[-2:])


def jaccard(predicted: Tensor, mask: Tensor) -> Tensor:
    """Return `|A ∩ B| / |A ∪ B|`, in 0–1, of patches (..., h, w) bool and the objects of a mask (H, W).

    Patches are enlarged to the mask's size (nearest). Void pixels are ignored in both.
    """
    sized = enlarged(predicted, mask.shape)
    inside, known = mask == OBJECT, mask != VOID
    both = (sized & inside).sum(dim=(-2, -1))
    return both / ((sized | inside) & known).sum(dim=(-2, -1))


class Overlap:
    """The overlap of attention with objects, collected over images."""

    def __init__(self, mass: float) -> None:
        self.mass = mass
        self.empty = 0
        """Images whose mask has no object; no figure includes them."""
        self._heads: list[Tensor] = []
        self._others: dict[str, list[float]] = {"mean": [], "even": [], "center": []}
        self._masses: list[AttentionMass] = []

    def __len__(self) -> int:
        return len(self._masses)

    def add(self, attention: Tensor, mask: Tensor) -> None:
        """Add one image: attention (heads, h, w) and its mask (H, W), uint8 of 0, OBJECT and VOID."""
        inside = mask == OBJECT
        if not inside.any():
            self.empty += 1
            return
        mean = attention.double().mean(dim=0)
        nan_or_0 = torch.nan if not attention.isfinite().all() else 0.0
        center = centered_gaussian(*mean.shape)
        self._heads.append(jaccard(keep_mass(attention, self.mass), mask) + nan_or_0)
        self._others["mean"].append(jaccard(keep_mass(mean, self.mass), mask).item() + nan_or_0)
        self._others["even"].append(jaccard(torch.ones_like(mean, dtype=torch.bool), mask).item())
        self._others["center"].append(jaccard(keep_mass(center, self.mass), mask).item())
        self._masses.append(attention_mass(attention[None], inside[None]))

    def figures(self) -> dict[str, float]:
        """Return means over the images, in percent.

        jaccard_mean is for the mean over heads. jaccard_best_head takes the head with the greatest overlap in
        each image, an upper bound because the mask chooses it. Two baselines need no network: jaccard_even,
        the entire image, and jaccard_center, the same share of a centered Gaussian. The rest is described in
        `AttentionMass`; there void counts as background.
        """
        heads = torch.stack(self._heads)
        shares = {f"jaccard_{name}": values for name, values in self._others.items()}
        shares["jaccard_best_head"] = heads.amax(dim=1).tolist()
        for name in _MASSES:
            shares[name] = [getattr(each, name) for each in self._masses]
        figures = {name: _percent(values, name) for name, values in shares.items()}
        return {name: figures[name] for name in sorted(figures, key=_ORDER.index)}

    def by_head(self) -> list[float]:
        """Return each head's Jaccard index, the mean over the images, in percent."""
        return (100 * torch.stack(self._heads).mean(dim=0)).tolist()


_MASSES = ["mass", "area", "gaussian_mass", "auc", "gaussian_auc"]
_ORDER = [f"jaccard_{name}" for name in ("mean", "best_head", "even", "center")] + _MASSES


def _percent(values: Sequence[float], name: str) -> float:
    """Return the mean in percent; an image without a patch inside or outside the object has no AUC."""
    numbers = np.asarray(values)
    if name.endswith("auc"):
        numbers = numbers[~np.isnan(numbers)]
    return 100 * float(numbers.mean()) if len(numbers) else float("nan")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a mask file. Raises UserError if it is not a mask."""
    try:
        with opened_image(path) as image:
            channels = len(image.getbands())
            if channels == 1:
                yield image
    except Exception as error:  # decoders raise every kind of error on damaged bytes
        raise UserError(f"{path}: the mask cannot be read ({type(error).__name__}: {error}).") from error
    if channels > 1:
        raise UserError(
            f"{path}: a mask with {channels} channels; use grayscale or palette images, with 0 as background."
        )


def mask_size(path: Path) -> tuple[int, int]:
    """Return width and height of a mask file, from its header. Raises UserError if it is not a mask."""
    with _opened(path) as image:
        return image.size


def read_mask(path: Path) -> Tensor:
    """Read a mask file as uint8 (H, W): 0, OBJECT or VOID.

    In palette images, and in grayscale images of low values, values are indices: 0 is background, 255 is void
    as in VOC, and all others are objects. In other grayscale images, pixels brighter than half are the
    object: white on black, with or without soft edges. Raises UserError for anything else.
    """
    with _opened(path) as image:
        mode, values = image.mode, np.asarray(image)
    between = values[(values != 0) & (values != VOID)]
    if mode != "P" and (not len(between) or between.max() > MOST_INDEX):
        half = 32768 if values.max() > 255 else 128
        return torch.from_numpy((values >= half).astype(np.uint8) * OBJECT)
    mask = np.where(values == VOID, VOID, np.where(values != 0, OBJECT, 0))
    return torch.from_numpy(mask.astype(np.uint8))
