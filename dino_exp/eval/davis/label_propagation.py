"""The masks of a video's first frame carried through the others by similarity (Jabri et al. 2020)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Similarities held at once, about: 2^24 floats are 64 MiB, of which two or three are needed at a time.
SIMILARITIES_AT_ONCE = 2**24


def carried(
    first_features: Tensor,
    first_masks: Tensor,
    others: Iterable[Tensor],
    *,
    frames: int,
    neighborhood: int,
    neighbors: int,
    temperature: float,
) -> Iterator[Tensor]:
    """Masks (C, h, w) of the other frames, one after the other, on the device of the features.

    Each frame takes its masks from the first frame and from the last `frames` before it, as they were carried
    there; no other features are kept. What is carried stays soft: it is not rounded between frames.

    first_features: (D, h, w), as are all `others`; they need not be normalized.
    first_masks: (C, h, w), one-hot over the background and the objects. The rest as in `carry`.
    """
    first = F.normalize(first_features, dim=0), first_masks
    last: deque[tuple[Tensor, Tensor]] = deque(maxlen=frames)
    for features in others:
        present = F.normalize(features, dim=0)
        context = [first, *last]
        masks = carry(
            present,
            torch.stack([source for source, _ in context]),
            torch.stack([source_masks for _, source_masks in context]),
            neighborhood=neighborhood,
            neighbors=neighbors,
            temperature=temperature,
        )
        last.append((present, masks))
        yield masks


def carry(
    target: Tensor,
    sources: Tensor,
    masks: Tensor,
    *,
    neighborhood: int,
    neighbors: int,
    temperature: float,
    rows: int | None = None,
) -> Tensor:
    """Masks (C, h, w) of a frame: at each place the mean of those of the most similar places, by weight.

    A place looks at those up to `neighborhood` rows and columns away (0: everywhere) in all sources
    together, and takes the `neighbors` of highest cosine, and whatever ties with the last of them, with
    weights exp(cosine / temperature) that are made to add up to 1.

    target (D, h, w) and sources (n, D, h, w): L2-normalized over D. masks: (n, C, h, w).
    rows: of the target, compared at once; by default as memory allows. The result is the same.
    """
    height, width = target.shape[1:]
    reach = neighborhood or max(height, width)
    band = min(height, 2 * reach + 1)
    rows = rows or min(max(1, SIMILARITIES_AT_ONCE // (len(sources) * band * width**2)), band)
    near_rows, near_columns = (_near(length, reach, target.device) for length in (height, width))
    parts = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # Places further up or down than this are nobody's neighbors, so they are not compared at all.
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
        # Dividing all weights of a place by its largest changes no share and cannot overflow at small T.
        weights = ((similarity - nearest[:, :1]) / temperature).exp_().mul_(chosen)
        weights /= weights.sum(dim=1, keepdim=True)
        labels = masks[:, :, band_top:band_bottom].transpose(0, 1).flatten(1)
        parts.append((labels @ weights.t()).unflatten(1, (bottom - top, width)))
    return torch.cat(parts, dim=1)


def label_map(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """The mask that is greatest at each pixel, uint8 (H, W), of soft masks (C, h, w).

    They are enlarged to `size` (bilinear) and then stretched, each by itself.
    """
    enlarged = F.interpolate(masks.unsqueeze(0), size=size, mode="bilinear", align_corners=False)[0]
    return stretched(enlarged).argmax(dim=0).to(torch.uint8)


def stretched(masks: Tensor) -> Tensor:
    """Each of the masks (C, H, W) from 0 at its least to 1 at its greatest value; an even one is 0 or 1."""
    low, high = masks.amin(dim=(1, 2), keepdim=True), masks.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (masks - low) / (high - low), (high > 0).to(masks.dtype))


def _near(length: int, reach: int, device: torch.device) -> Tensor:
    """(length, length) bool: whether two rows, or columns, are at most `reach` apart."""
    place = torch.arange(length, device=device)
    return (place[:, None] - place[None, :]).abs() <= reach
