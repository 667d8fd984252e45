"""Attention as a mask: what holds most of it, and how well that overlaps an object (DINO, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dino_exp.data.source import FORMATS
from dino_exp.errors import UserError
from dino_exp.eval.attention.attend import AttentionMass, attention_mass, centered_gaussian

OBJECT, VOID = 1, 255
MOST_INDEX = 100
"""Above this a grayscale value is a brightness and no number of an object; VOC has 20 classes, COCO 90."""
"""Values of a mask; 0 is background. Void counts for nothing, as the outlines of VOC."""


def keep_mass(attention: Tensor, mass: float) -> Tensor:
    """The fewest patches that hold at least the share `mass` of the attention: (..., h, w), bool.

    Each map is sorted upwards and summed, and the patches stay from where the sum exceeds 1 - mass, as in the
    released `visualize_attention.py`. Of equal patches the later ones stay. NaN keeps nothing.
    """
    values, order = attention.double().flatten(-2).sort(dim=-1, stable=True)
    share = values.cumsum(dim=-1) / values.sum(dim=-1, keepdim=True)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, share > 1 - mass)
    return kept.unflatten(-1, attention.shape[-2:])


def jaccard(predicted: Tensor, mask: Tensor) -> Tensor:
    """|A ∩ B| / |A ∪ B| of patches (..., h, w) bool and the objects of a mask (H, W), in 0–1.

    Patches are brought to the mask's size, each a flat square (nearest). Void pixels are left out of both.
    """
    flat = predicted.reshape(1, -1, *predicted.shape[-2:]).float()
    sized = F.interpolate(flat, size=mask.shape, mode="nearest-exact")[0] > 0.5
    inside, known = mask == OBJECT, mask != VOID
    both = (sized & inside).sum(dim=(-2, -1))
    either = ((sized | inside) & known).sum(dim=(-2, -1))
    return (both / either).reshape(predicted.shape[:-2])


class Overlap:
    """Collects how well attention finds the objects, one image after the other."""

    def __init__(self, mass: float) -> None:
        self.mass = mass
        self.empty = 0
        """Images whose mask has no object; they count in no figure."""
        self._heads: list[Tensor] = []
        self._others: dict[str, list[float]] = {"mean": [], "even": [], "center": []}
        self._masses: list[AttentionMass] = []

    def __len__(self) -> int:
        return len(self._masses)

    def add(self, attention: Tensor, mask: Tensor) -> None:
        """Of one image: attention (heads, h, w) and its mask (H, W), uint8 of 0, OBJECT and VOID."""
        inside = mask == OBJECT
        if not inside.any():
            self.empty += 1
            return
        mean = attention.double().mean(dim=0)
        nothing = torch.nan if not attention.isfinite().all() else 0.0
        center = centered_gaussian(*mean.shape)
        self._heads.append(jaccard(keep_mass(attention, self.mass), mask) + nothing)
        self._others["mean"].append(jaccard(keep_mass(mean, self.mass), mask).item() + nothing)
        self._others["even"].append(jaccard(torch.ones_like(mean, dtype=torch.bool), mask).item())
        self._others["center"].append(jaccard(keep_mass(center, self.mass), mask).item())
        self._masses.append(attention_mass(attention[None], inside[None]))

    def figures(self) -> dict[str, float]:
        """Means over the images, in percent.

        jaccard_mean is that of the mean over heads. jaccard_best_head takes of each image the head with the
        greatest overlap, an upper bound because the mask chooses. What needs no network: jaccard_even, the
        whole image, and jaccard_center, the same share of a centered Gaussian. `AttentionMass` has the rest,
        in which void counts as background.
        """
        heads = torch.stack(self._heads)
        shares = {f"jaccard_{name}": values for name, values in self._others.items()}
        shares["jaccard_best_head"] = heads.amax(dim=1).tolist()
        for name in _MASSES:
            shares[name] = [getattr(each, name) for each in self._masses]
        figures = {name: _percent(values, name) for name, values in shares.items()}
        return {name: figures[name] for name in sorted(figures, key=_ORDER.index)}

    def by_head(self) -> list[float]:
        """Jaccard of each head, mean over the images, in percent."""
        return (100 * torch.stack(self._heads).mean(dim=0)).tolist()


_MASSES = ["mass", "area", "gaussian_mass", "auc", "gaussian_auc"]
_ORDER = [f"jaccard_{name}" for name in ("mean", "best_head", "even", "center")] + _MASSES


def _percent(values: Sequence[float], name: str) -> float:
    """The AUC is not defined for an image without a patch inside or beside the object."""
    numbers = np.asarray(values)
    if name.endswith("auc"):
        numbers = numbers[~np.isnan(numbers)]
    return 100 * float(numbers.mean()) if len(numbers) else float("nan")


def mask_size(path: Path) -> tuple[int, int]:
    """Width and height of a mask file, from its header. Raises UserError where it is no mask."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            channels, size = len(image.getbands()), image.size
    except Exception as error:
        raise _unreadable(path, error) from error
    if channels > 1:
        raise _colored(path, channels)
    return size


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: the mask cannot be read ({type(error).__name__}: {error}).")


def _colored(path: Path, channels: int) -> UserError:
    return UserError(
        f"{path}: a mask with {channels} channels; give grayscale or palette images, 0 where no object is."
    )


def read_mask(path: Path) -> Tensor:
    """A mask file as uint8 (H, W): 0, OBJECT or VOID.

    Palette images are read by index, and grayscale ones with a few low values too: every value but 0 and
    255 is an object, and 255 is void, as in VOC. In other grayscale images what is brighter than half is
    the object, so that white on black works, with soft edges too. Raises UserError.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode, values = image.mode, np.asarray(image)
    except Exception as error:  # decoders raise every kind of error on damaged bytes
        raise _unreadable(path, error) from error
    if values.ndim != 2:
        raise _colored(path, values.shape[2])
    between = values[(values != 0) & (values != VOID)]
    if mode != "P" and (not len(between) or between.max() > MOST_INDEX):
        half = 32768 if values.max() > 255 else 128
        return torch.from_numpy((values >= half).astype(np.uint8) * OBJECT)
    mask = np.where(values == VOID, VOID, np.where(values != 0, OBJECT, 0))
    return torch.from_numpy(mask.astype(np.uint8))
