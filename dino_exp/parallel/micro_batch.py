"""Parts of a batch of crops, for gradient accumulation.

Rows are crop-major: of B images, rows [i·B, (i + 1)·B) are crop i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def micro_batch(rows: Tensor, batch: int, number: int, parts: int) -> Tensor:
    """Return all crops of one of `parts` equal parts of the images, (n·B, ...) -> (n·B / parts, ...).

    `batch` is B, `number` the part's, from 0.
    """
    if parts == 1:
        return rows
    size = batch // parts
    return torch.cat([crop[number * size : (number + 1) * size] for crop in rows.split(batch)])


def join_micro_batches(parts: Sequence[Tensor], crops: int) -> Tensor:
    """Undo `micro_batch`: join all parts, each with `crops` crops of its images, to a crop-major batch."""
    if len(parts) == 1:
        return parts[0]
    by_part = [part.chunk(crops) for part in parts]
    return torch.cat([torch.cat(crop) for crop in zip(*by_part, strict=True)])
