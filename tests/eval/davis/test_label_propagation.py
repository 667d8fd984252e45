"""Label propagation against a loop over positions, and in cases that can be checked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_exp.eval.davis.label_propagation import label_map, propagate, propagate_through, stretched

SETTINGS: dict[str, Any] = {"neighborhood": 2, "neighbors": 3, "temperature": 0.1}


def frames(count: int, height: int = 5, width: int = 7) -> tuple[Tensor, Tensor]:
    """Return random normalized features (n, 8, h, w) and soft masks (n, 3, h, w)."""
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(count, 8, height, width, generator=generator)
    masks = torch.rand(count, 3, height, width, generator=generator).softmax(dim=1)
    return F.normalize(features, dim=1), masks


def propagated_to(target: Tensor, sources: Tensor, masks: Tensor, row: int, column: int) -> Tensor:
    """Return the masks (C,) at one position, by `SETTINGS`."""
    found = []
    for source, mask in zip(sources, masks, strict=True):
        for y in range(source.shape[1]):
            for x in range(source.shape[2]):
                if max(abs(y - row), abs(x - column)) <= SETTINGS["neighborhood"]:
                    cosine = float(target[:, row, column] @ source[:, y, x])
                    found.append((cosine, mask[:, y, x]))
    best = sorted(found, key=lambda each: -each[0])[: SETTINGS["neighbors"]]
    weights = [math.exp(cosine / SETTINGS["temperature"]) for cosine, _ in best]
    return torch.stack([w * mask for w, (_, mask) in zip(weights, best, strict=True)]).sum(0) / sum(weights)


@pytest.mark.parametrize("rows", [1, 2, 5, None])
def test_propagation_equals_a_loop_over_positions_with_any_number_of_rows(rows: int | None) -> None:
    features, masks = frames(5)
    target, sources, masks = features[0], features[1:], masks[1:]
    result = propagate(target, sources, masks, rows=rows, **SETTINGS)
    expected = torch.stack(
        [torch.stack([propagated_to(target, sources, masks, y, x) for x in range(7)], 1) for y in range(5)], 1
    )
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(result.sum(dim=0), torch.ones(5, 7))


def test_only_positions_in_the_neighborhood_count() -> None:
    # Every position has its own feature; the target has at (0, 0) the feature of the source at (2, 3).
    source = torch.eye(20).view(20, 4, 5)
    target = source.clone()
    target[:, 0, 0] = source[:, 2, 3]
    mask = torch.zeros(1, 1, 4, 5)
    mask[0, 0, 2, 3] = 1
    at_corner = {
        reach: float(
            propagate(target, source[None], mask, neighborhood=reach, neighbors=1, temperature=0.01)[0, 0, 0]
        )
        for reach in (0, 2, 3)
    }
    # Within 2 nothing is similar, so all nine positions tie at a cosine of 0.
    assert at_corner == {0: 1.0, 2: 0.0, 3: 1.0}


def test_ties_with_the_last_neighbor_all_count() -> None:
    flat = torch.ones(1, 3, 3)
    mask = torch.arange(9.0).view(1, 1, 3, 3)
    result = propagate(flat, flat[None], mask, neighborhood=1, neighbors=2, temperature=0.1)
    assert result[0, 0, 0] == pytest.approx((0 + 1 + 3 + 4) / 4)
    assert result[0, 1, 1] == pytest.approx(4)


def test_fewer_positions_than_neighbors() -> None:
    features, masks = frames(2, height=1, width=2)
    result = propagate(features[0], features[1:], masks[1:], neighborhood=1, neighbors=9, temperature=1e9)
    torch.testing.assert_close(result, masks[1].mean(dim=2, keepdim=True).expand(3, 1, 2))


def test_frames_take_their_masks_from_the_first_and_the_last_few() -> None:
    features, masks = frames(6)
    found = [masks[0], *propagate_through(5 * features[0], masks[0], features[1:], frames=2, **SETTINGS)]
    for present, context in ((1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [0, 3, 4])):
        known = torch.stack([found[index] for index in context])
        torch.testing.assert_close(
            found[present], propagate(features[present], features[context], known, **SETTINGS)
        )


def test_each_mask_is_stretched_to_its_own_range() -> None:
    masks = torch.tensor([[[0.2, 0.4], [0.3, 0.2]], [[0.0, 0.0], [0.0, 0.0]], [[0.7, 0.7], [0.7, 0.7]]])
    expected = torch.tensor([[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    torch.testing.assert_close(stretched(masks), expected)


def test_the_label_map_is_smooth_and_a_weak_object_is_not_lost() -> None:
    background = torch.tensor([[0.9, 0.9, 1.0, 1.0]])  # an object of a tenth at the left half
    labels = label_map(torch.stack([background, 1 - background]), (2, 16))
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[1] * 8 + [0] * 8] * 2
    lost = label_map(torch.stack([torch.ones(1, 4), torch.zeros(1, 4)]), (2, 16))
    assert not lost.any()
