"""Random parts of labeled images with the same share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dino_exp.data.source import ImageSource, Splits
from dino_exp.errors import UserError
from dino_exp.eval.subject import labeled


def classified(splits: Splits) -> tuple[ImageSource, ImageSource, int]:
    """Return training images, held-out images and the number of classes.

    Raises UserError if the images have no labels or only one class.
    """
    train, test = labeled(splits)
    assert train.labels is not None
    assert test.labels is not None
    found = np.unique(train.labels)
    if len(found) < 2:
        raise UserError(
            f"All {len(train)} training images have the same label ({', '.join(map(str, found))}); a "
            f"classifier needs at least two classes."
        )
    return train, test, int(max(train.labels.max(), test.labels.max())) + 1


def stratified(
    labels: np.ndarray, share: float, seed: int | Sequence[int], *, at_least: int = 0, spare: int = 0
) -> np.ndarray:
    """Draw round(share · n) rows at random from each class with n rows; return their indices, ascending.

    At least `at_least` rows are drawn from each class, but `spare` always remain. With the same seed, the
    rows of a smaller share are among those of a larger one.
    """
    random = np.random.default_rng(seed)
    chosen = []
    by_class = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.unique(labels, return_counts=True)[1])
    for rows in np.split(by_class, ends[:-1]):
        number = min(max(round(share * len(rows)), at_least), len(rows) - spare)
        chosen.append(random.permutation(rows)[: max(number, 0)])
    return np.sort(np.concatenate(chosen))
