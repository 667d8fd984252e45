"""Labels of stored images: what can never become a class."""

from array import array

import numpy as np
import pytest
import torch

from dino_exp.errors import UserError
from tests.data.sources import Album, labels_of

CLASSES = ["ant", "bee"]


def album() -> Album:
    return Album(torch.zeros(3, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("labels", [[0, -1, 1], [-1, -1, -1], [-(2**40), 0, 1]], ids=str)
def test_a_negative_number_is_no_class(labels: list[int]) -> None:
    for values in (array("q", labels), np.array(labels)):
        source = album()
        source.label(values, CLASSES)
        assert (source.labels, source.classes) == (None, None)


def test_numbers_without_a_class_are_refused() -> None:
    with pytest.raises(TypeError, match="labels are integers"):
        album().label(np.array([0.0, 1.0, np.nan]), CLASSES)
    with pytest.raises(UserError, match="album 1: label 2, but there are only 2 classes"):
        album().label(np.array([0, 2, 1]), CLASSES)


def test_labels_are_numbered_anew_or_dropped() -> None:
    source = album()
    source.label(np.array([0, 1, 0], dtype=np.uint8), CLASSES)
    source.relabel(["x", "bee", "ant"], [2, 1])
    assert (source.classes, labels_of(source).tolist()) == (["x", "bee", "ant"], [2, 1, 2])
    assert labels_of(source).dtype == np.int64
    source.relabel(["bee", "ant"], [-1, 0, 1])
    assert (source.classes, labels_of(source).tolist()) == (["bee", "ant"], [1, 0, 1])
    source.relabel(["bee", "ant"], [-1, 0])
    assert (source.classes, source.labels) == (None, None)
