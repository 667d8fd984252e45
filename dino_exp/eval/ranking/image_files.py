"""Features of image files that a protocol lists, of which not one may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from dino_exp.data.read_ahead import ahead
from dino_exp.data.source import IMAGE_SUFFIXES, CorruptImageError, read_image
from dino_exp.errors import UserError
from dino_exp.eval.features import evaluating
from dino_exp.eval.subject import Subject
from dino_exp.parallel import distributed

WAITING_BATCHES = 4
"""Images of all shapes that wait for a full batch of theirs, in batches."""


def features_of(
    files: Sequence[Path],
    show: Callable[[int, Image.Image], Image.Image],
    forward: Callable[[Tensor], Tensor],
    subject: Subject,
) -> Tensor:
    """Features (N, D) float32 on the CPU, of the files in their order; the processes share the work.

    show(number, image): the file as the network is to see it; threads call it ahead.
    forward(images uint8 (B, C, H, W)) -> (B, D), for images of one shape.
    Raises UserError, in all processes, for a file that cannot be read and for features that are not finite.
    """
    mine = distributed.share_of(range(len(files)))

    def load(number: int) -> Tensor:
        return _shown(files[number], number, show, subject.channels)

    rows: list[Tensor] = []
    numbers: list[int] = []
    images_ahead = ahead(load, mine, subject.workers, at_once=4 * subject.workers)
    with distributed.agreed(), evaluating(subject.backbone), subject.autocast():
        for chosen, images in _by_shape(zip(mine, images_ahead, strict=True), subject.batch_size):
            rows.append(forward(images).float().cpu())
            numbers += chosen
    width = max(distributed.from_all(rows[0].shape[1] if rows else 0))
    # cat outside inference_mode copies into ordinary tensors
    values = torch.cat(rows)[torch.tensor(numbers).argsort()] if rows else torch.empty(0, width)
    values = distributed.gathered(values)
    if not values.isfinite().all():
        raise UserError(
            f"{subject.name}: not all of its features are finite, so nothing can be ranked by them."
        )
    return values


def images_below(key: str, folder: Path) -> list[Path]:
    """All image files below a folder, sorted; a UserError naming the key where there are none."""
    if not folder.is_dir():
        raise UserError(f"{key} = {folder}: there is no such folder; give one with images.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise UserError(f"{key} = {folder}: no images there; file names end in .jpg, .png and the like.")
    return found


def patch_side(backbone: nn.Module) -> int:
    """Side of a transformer's patches in pixels; 1 for networks that have none."""
    owner = backbone if hasattr(backbone, "patch_size") else getattr(backbone, "patch_embed", None)
    side: Any = getattr(owner, "patch_size", 1)
    return int(side[0] if isinstance(side, Sequence) else side)


def check_takes(
    key: str,
    size: int,
    shapes: Sequence[tuple[int, int]],
    forward: Callable[[Tensor], Tensor],
    subject: Subject,
) -> None:
    """UserError naming key and size where the network does not take images of these heights and widths.

    Costs one forward pass of an image each.
    """
    if subject.channels not in (1, 3):
        raise UserError(f"data.channels = {subject.channels}: these images are files with colors, so 3 or 1.")
    for height, width in shapes:
        black = torch.zeros(1, subject.channels, height, width, dtype=torch.uint8)
        try:
            with evaluating(subject.backbone), subject.autocast():
                forward(black)
        except (AssertionError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UserError(
                f"{key} = {size}: the network cannot take images of {width}x{height} pixels ({reason}); "
                "choose a size that it takes; some networks take a single one."
            ) from error


def _shown(file: Path, number: int, show: Callable[[int, Image.Image], Image.Image], channels: int) -> Tensor:
    """uint8 (C, H, W). Pillow resizes, since its values are the protocols'."""
    try:
        decoded = read_image(file, channels)
    except CorruptImageError as error:
        raise UserError(
            f"{error}. Put a whole file in its place; figures without it would not be comparable."
        ) from error
    values = decoded.permute(1, 2, 0).numpy()
    image = show(number, Image.fromarray(values if channels == 3 else values[:, :, 0]))
    values = np.array(image)
    return torch.from_numpy(values if channels == 3 else values[:, :, None]).permute(2, 0, 1)


def _by_shape(images: Iterator[tuple[int, Tensor]], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Batches of one shape each, with their numbers; few images wait, however many shapes there are."""
    waiting: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    held = 0
    for number, image in images:
        group = waiting.setdefault(image.shape, [])
        group.append((number, image))
        held += 1
        if len(group) < batch_size:
            if held < WAITING_BATCHES * batch_size:
                continue
            group = max(waiting.values(), key=len)
        held -= len(group)
        yield _stacked(waiting.pop(group[0][1].shape))
    for group in waiting.values():
        yield _stacked(group)


def _stacked(group: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    return [number for number, _ in group], torch.stack([image for _, image in group])
