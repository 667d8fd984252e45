"""Labels as others give them: numbers or texts, of items, of a Dataset's attributes, or beside the images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dino_exp.data.image_formats import IMAGE_SUFFIXES
from dino_exp.data.labeled import LabeledSource
from dino_exp.errors import UserError

Label = int | str


def label_of(value: Any) -> Label | None:
    """Return a class's number or text; None for a negative number, and for what is no label."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str):
        return value
    return int(value) if isinstance(value, (int, np.integer)) and value >= 0 else None


def is_path(value: Any) -> bool:
    """Return whether a value names an image; other texts may be labels."""
    return isinstance(value, os.PathLike) or (
        isinstance(value, str) and os.path.splitext(value)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
    )


def are_labels(values: Any) -> bool:
    """Return whether something is whole numbers or texts in a row, and no images."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        return values.ndim == 1 and values.dtype.kind in "iuU"
    whole = (int, np.integer)
    return isinstance(values, (list, tuple)) and all(
        isinstance(each, whole) or (label_of(each) is not None and not is_path(each)) for each in values
    )


def labels_of(items: Any, count: int) -> list[Label | None] | None:
    """Return the labels that a Dataset has as torchvision's do, one for each item; None if it has none."""
    for name in ("targets", "labels"):
        values = getattr(items, name, None)
        if values is not None and are_labels(values) and len(values) == count:
            return [label_of(value) for value in values]
    return None


def classes_of(items: Any) -> list[str] | None:
    """Return the class names that a Dataset, or the one that it is a subset of, has as torchvision's do."""
    for owner in (items, getattr(items, "dataset", None)):
        names = getattr(owner, "classes", None)
        if isinstance(names, (list, tuple)):
            return list(map(str, names))
    return None


def set_labels(source: LabeledSource, labels: Sequence[Label | None], classes: list[str] | None) -> None:
    """Label images; `classes` names the numbers if there are enough, and else numbers and texts are names.

    Raises UserError for numbers among texts.
    """
    source.relabel(None, [])
    numbers = sorted({each for each in labels if isinstance(each, int)})
    texts = sorted({each for each in labels if isinstance(each, str)})
    if numbers and texts:
        raise UserError(
            f"{source.path}: the labels {numbers[0]} and {texts[0]!r} do not go together; give numbers, or "
            "texts."
        )
    known: list[Label] = [*numbers, *texts]
    place, names = {each: number for number, each in enumerate(known)}, list(map(str, known))
    if numbers and classes is not None and numbers[-1] < len(classes):
        place, names = {each: each for each in numbers}, classes
    found = [-1 if each is None else place[each] for each in labels]
    source.label(np.array(found, dtype=np.int64), names)


def use_classes_of(train: LabeledSource, test: LabeledSource) -> None:
    """Number the labels of held-out images as those of the training images.

    Raises UserError if they are missing, or of a class that the training images do not have.
    """
    if train.classes is None:
        test.relabel(None, [])
        return
    if test.classes is None or test.labels is None:
        raise UserError(
            "The held-out images have no labels, or all the same, and the training images have "
            f"{len(train.classes):,} classes; label them, or give no held-out images."
        )
    place = {name: number for number, name in enumerate(train.classes)}
    unknown = sorted({test.classes[label] for label in np.unique(test.labels)} - place.keys())
    if unknown:
        raise UserError(
            f"The held-out images have the class {unknown[0]!r} ({len(unknown):,} such), which is not among "
            f"the {len(train.classes):,} classes of the training images; make them agree."
        )
    test.relabel(train.classes, [place.get(name, -1) for name in test.classes])
