"""Label propagation: the masks of a video's first frame, carried on by similarity (Jabri et al. 2020)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES_AT_ONCE = 2**24
"""Similarities in memory, about: 64 MiB of floats, of which two or three copies are needed at a time."""


def propagate_through(
    first_features: Tensor,
    first_masks: Tensor,
    others: Iterable[Tensor],
    *,
    frames: int,
    neighborhood: int,
    neighbors: int,
    temperature: float,
) -> Iterator[Tensor]:
    """Yield masks (C, h, w) of the other frames in order, on the device of the features.

    Each frame takes its masks from the first frame and from the last `frames` before it, with the masks that
    were propagated to them; no other features are kept. Masks stay soft: they are not rounded between frames.

    first_features: (D, h, w), as are all `others`; they need not be normalized.
    first_masks: (C, h, w), one-hot over the background and the objects. The rest as in `propagate`.
    """
    first = F.normalize(first_features, dim=0), first_masks
    last: deque[tuple[Tensor, Tensor]] = deque(maxlen=frames)
    for features in others:
        present = F.normalize(features, dim=0)
        context = [first, *last]
        masks = propagate(
            present,
            torch.stack([source for source, _ in context]),
            torch.stack([source_masks for _, source_masks in context]),
            neighborhood=neighborhood,
            neighbors=neighbors,
            temperature=temperature,
        )
        last.append((present, masks))
        yield masks


def propagate(
    target: Tensor,
    sources: Tensor,
    masks: Tensor,
    *,
    neighborhood: int,
    neighbors: int,
    temperature: float,
    rows: int | None = None,
) -> Tensor:
    """Return masks (C, h, w) of a frame: at each position the weighted mean of the most similar positions'.

    A position is compared with those up to `neighborhood` rows and columns away (0: all) in all sources. It
    takes the `neighbors` with the highest cosines, and those that tie with the last of them, with weights
    exp(cosine / temperature), normalized to a sum of 1.

    target (D, h, w) and sources (n, D, h, w): L2-normalized over D. masks: (n, C, h, w).
    rows: rows of the target that are compared at once, by default as many as memory allows; the result does
    not depend on it.
    """
    height, width = target.shape[1:]
    reach = neighborhood or max(height, width)
    band = min(height, 2 * reach + 1)
    rows = rows or min(max(1, SIMILARITIES_AT_ONCE // (len(sources) * band * width**2)), band)
    near_rows, near_columns = (_near(length, reach, target.device) for length in (height, width))
    parts = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # No position further up or down is in a neighborhood of these rows.
        band_top, band_bottom = max(top - reach, 0), min(bottom + reach, height)
        queries = target[:, top:bottom].flatten(1).t()
        keys = sources[:, :, band_top:band_bottom].transpose(0, 1).flatten(1)
        similarity = (queries @ keys).view(bottom - top, width, len(sources), band_bottom - band_top, width)
        near = (
            near_rows[top:bottom, None, None, band_top:band_bottom, None]
            & near_columns[None, :, None, None, :]
        )
        similarity = similarity.masked_fill_(~near, -torch.inf).flatten(2).flatten(0, 1)
        nearest = similarity.topk(min(neighbors, similarity.shape[1]), dim=1).values
        chosen = similarity >= nearest[:, -1:]
        # Dividing all weights of a position by the largest changes no share and cannot overflow at small T.
        weights = ((similarity - nearest[:, :1]) / temperature).exp_().mul_(chosen)
        weights /= weights.sum(dim=1, keepdim=True)
        labels = masks[:, :, band_top:band_bottom].transpose(0, 1).flatten(1)
        parts.append((labels @ weights.t()).unflatten(1, (bottom - top, width)))
    return torch.cat(parts, dim=1)


def label_map(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the index of the greatest soft mask at each pixel, uint8 (H, W), of masks (C, h, w).

    Masks are enlarged to `size` (bilinear), and then each is stretched.
    """
    enlarged = F.interpolate(masks.unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0]
    return stretched(enlarged).argmax(dim=0).to(torch.uint8)


def stretched(masks: Tensor) -> Tensor:
    """Scale each of the masks (C, H, W) to the range 0–1; a constant one becomes 0 or 1."""
    low, high = masks.amin(dim=(1, 2), keepdim=True), masks.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (masks - low) / (high - low), (high > 0).to(masks.dtype))


def _near(length: int, reach: int, device: torch.device) -> Tensor:
    """Return (length, length) bool, true where two rows, or columns, are at most `reach` apart."""
    index = torch.arange(length, device=device)
    return (index[:, None] - index[None, :]).abs() <= reach
