"""J, F and their statistics for masks whose pixels can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dino_exp.eval.davis.region_and_contour import contour, contour_accuracy, region_similarity, statistics


def square(left: int, side: int = 20, top: int = 40, size: tuple[int, int] = (100, 100)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_region_similarity() -> None:
    assert region_similarity(square(30), square(35)) == (15 * 20) / (25 * 20)
    assert region_similarity(square(30), square(60)) == 0
    nothing = np.zeros((100, 100), dtype=bool)
    assert region_similarity(nothing, nothing) == 1
    assert region_similarity(nothing, square(30)) == region_similarity(square(30), nothing) == 0


def test_a_contour_is_one_pixel_wide_and_open_at_the_edge_of_the_image() -> None:
    dot = square(2, side=1, top=2, size=(5, 5))
    assert np.argwhere(contour(dot)).tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    corner = square(0, side=2, top=3, size=(5, 5))  # the lowest two rows, the leftmost two columns
    assert np.argwhere(contour(corner)).tolist() == [[2, 0], [2, 1], [3, 1], [4, 1]]
    assert not contour(np.ones((5, 5), dtype=bool)).any()


def test_contours_up_to_the_tolerance_apart_agree() -> None:
    # 0.8 % of the diagonal of 141 pixels, rounded up, is 2; the contour of a square of 20 has 4 * 20 pixels
    assert contour_accuracy(square(30), square(32)) == 1
    # Moved by 3: of the upper and lower sides all but the outermost pixel are near, 2 * 20 of them, and of
    # the side within the other square those at most 2 below or above its sides, 2 * 2.
    assert contour_accuracy(square(30), square(33)) == pytest.approx(44 / 80)
    assert contour_accuracy(square(0), square(60)) == 0


def test_contour_accuracy_is_the_harmonic_mean_of_precision_and_recall() -> None:
    one, both = square(10), square(10) | square(60)
    assert contour_accuracy(one, both) == contour_accuracy(both, one) == pytest.approx(2 * 0.5 / 1.5)


def test_contour_accuracy_without_contours() -> None:
    nothing, everything = np.zeros((100, 100), dtype=bool), np.ones((100, 100), dtype=bool)
    assert contour_accuracy(nothing, nothing) == contour_accuracy(nothing, everything) == 1
    assert contour_accuracy(nothing, square(30)) == contour_accuracy(square(30), nothing) == 0


def test_neighboring_quarters_share_a_frame() -> None:
    # linspace(1, 8, 5) = 1, 2.75, 4.5, 6.25, 8 rounds to frames 1, 3, 5, 6, 8: three first, three last
    found = statistics([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert found == pytest.approx((0.55, 0.5, 0.8 - 0.3))
    assert statistics([0.5]) == (0.5, 0.0, 0.0)
