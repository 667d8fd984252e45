"""Features of the image files that a protocol lists, none of which may be missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_exp.data.image_formats import known_endings
from dino_exp.data.image_scan import QUIET, Skipped, walk
from dino_exp.data.read_ahead import ahead
from dino_exp.data.source import CorruptImageError, read_image
from dino_exp.errors import UserError, in_words
from dino_exp.eval.features import evaluating, gathered
from dino_exp.eval.network_input import network_errors
from dino_exp.eval.subject import Subject
from dino_exp.parallel import distributed

WAITING_BATCHES = 4
"""Most images, in batches, that wait until a batch of their shape is full."""


def features_of(
    files: Sequence[Path],
    prepare: Callable[[int, Image.Image], Image.Image],
    forward: Callable[[Tensor], Tensor],
    subject: Subject,
) -> Tensor:
    """Return features (N, D) of the files in their order, float32 on the CPU; the processes share the work.

    prepare(index, image) returns the image as the network sees it; threads call it ahead of the network.
    forward(images uint8 (B, C, H, W)) -> (B, D) gets images of one shape.
    Raises UserError, in all processes, for a file that cannot be read and for features that are not finite.
    """
    mine, gray = distributed.share_of(range(len(files))), subject.channels != 3

    def load(index: int) -> Tensor:
        """Return the image uint8 (C, H, W). Pillow resizes, as in the released protocols."""
        try:
            decoded = read_image(files[index], subject.decoding)
        except CorruptImageError as error:
            raise UserError(
                f"{error}. Replace the file; results without it would not be comparable."
            ) from error
        values = decoded.permute(1, 2, 0).numpy()
        values = np.array(prepare(index, Image.fromarray(values[:, :, 0] if gray else values)))
        return torch.from_numpy(values[:, :, None] if gray else values).permute(2, 0, 1)

    rows: list[Tensor] = []
    indices: list[int] = []
    images_ahead = ahead(load, mine, subject.workers, at_once=4 * subject.workers)
    with distributed.agreed(), evaluating(subject.backbone), subject.autocast():
        for chosen, images in _by_shape(zip(mine, images_ahead, strict=True), subject.batch_size):
            rows.append(forward(images).float().cpu())
            indices += chosen
    values = gathered([torch.cat(rows)[torch.tensor(indices).argsort()]] if rows else [])
    if not values.isfinite().all():
        raise UserError(f"{subject.name}: some of its features are not finite; the network has diverged.")
    return values


def images_below(key: str, folder: Path) -> list[Path]:
    """Return all images below a folder, sorted, by the rule of `data/image_scan.py`.

    Raises UserError, naming the key, where there are none, or where a folder cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{key} = {folder}: no such folder; give a folder of images.")
    skipped, found = Skipped(), []
    try:
        for inner in walk(folder, skipped):
            found += [folder / os.fsdecode(inner.prefix + name) for name in inner.images]
    except OSError as error:
        raise UserError(f"{key} = {folder}: cannot be read: {in_words(error)}.") from error
    if not found:
        words = skipped.words(QUIET)
        raise UserError(
            f"{key} = {folder}: no images there{f', but {words}' if words else ''}; names of images end in "
            f"{known_endings()}."
        )
    skipped.say(key, folder)
    return sorted(found)


def check_takes(
    key: str, size: int, shape: tuple[int, int], forward: Callable[[Tensor], Tensor], subject: Subject
) -> None:
    """Raise UserError, naming key and size, unless the network takes an image of this (height, width)."""
    if subject.channels not in (1, 3):
        raise UserError(
            f"data.channels = {subject.channels}: these images are color files; use 3, or 1 for gray."
        )
    black = torch.zeros(1, subject.channels, *shape, dtype=torch.uint8)
    problem = f"{key} = {size}: the network cannot take images of {shape[1]}x{shape[0]} pixels"
    remedy = "; choose a size that it takes (some networks take only one)."
    with network_errors(problem, remedy), evaluating(subject.backbone), subject.autocast():
        forward(black)


def _by_shape(images: Iterator[tuple[int, Tensor]], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (indices, images) in batches of one shape each; few images wait, whatever their shapes."""
    waiting: dict[torch.Size, list[tuple[int, Tensor]]] = {}
    held = 0
    for index, image in images:
        group = waiting.setdefault(image.shape, [])
        group.append((index, image))
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
    return [index for index, _ in group], torch.stack([image for _, image in group])
