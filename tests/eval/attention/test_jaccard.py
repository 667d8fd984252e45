from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_exp.errors import UserError
from dino_exp.eval.attention.jaccard import OBJECT, VOID, Overlap, jaccard, keep_mass, read_mask


def test_the_fewest_patches_that_hold_the_mass_are_kept() -> None:
    # Ascending sums 0.05, 0.2, 0.5, 1: for 60 % those above 0.4 are kept. The map's scale does not matter.
    attention = torch.tensor([[0.3, 0.05], [0.5, 0.15]])
    assert keep_mass(0.7 * attention, 0.6).tolist() == [[True, False], [True, False]]
    assert keep_mass(attention, 0.45).tolist() == [[False, False], [True, False]]
    assert keep_mass(attention, 0.96).all()

    # The same by another algorithm: take the greatest until the mass is reached.
    maps = torch.rand(3, 5, 7, 9, generator=torch.Generator().manual_seed(0)) ** 4
    kept = keep_mass(maps, 0.6)
    for values, chosen in zip(maps.flatten(0, 1), kept.flatten(0, 1), strict=True):
        descending = values.flatten().double().sort(descending=True).values
        fewest = 1 + int((descending.cumsum(0) < 0.6 * descending.sum()).sum())
        assert chosen.sum() == fewest
        assert values[chosen].min() >= values[~chosen].max()


def test_jaccard_by_hand() -> None:
    # Two by two patches of two pixels. The object is the upper row and a pixel of void lies in the lower.
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[:2] = OBJECT
    mask[2, 0] = VOID
    upper_left = torch.tensor([[True, False], [False, False]])
    left = torch.tensor([[True, False], [True, False]])
    got = jaccard(torch.stack([upper_left, left, torch.zeros(2, 2, dtype=torch.bool)]), mask)
    assert got.tolist() == pytest.approx([4 / 8, 4 / (8 + 3), 0])
    assert jaccard(upper_left, mask).item() == 0.5


def test_overlap_by_hand() -> None:
    # Head 1 keeps the upper left patch, head 2 the upper right, their mean (0.45, 0.45, 0.05, 0.05) both.
    one, two = torch.tensor([[0.8, 0.1], [0.05, 0.05]]), torch.tensor([[0.1, 0.8], [0.05, 0.05]])
    left, upper = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.uint8)
    left[:2, :2] = upper[:2] = OBJECT
    overlap = Overlap(0.6)
    overlap.add(torch.stack([one, two]), left)
    overlap.add(torch.stack([one, two]), upper)
    overlap.add(torch.stack([one, two]), torch.full((4, 4), VOID, dtype=torch.uint8))
    assert (len(overlap), overlap.empty) == (2, 1)
    # 60 % of four equal patches are the last three: the centered Gaussian's overlap is 0/4 and 1/4.
    assert overlap.figures() == pytest.approx(
        {
            "jaccard_mean": 100 * (1 / 2 + 1) / 2,
            "jaccard_best_head": 100 * (1 + 1 / 2) / 2,
            "jaccard_even": 100 * (1 / 4 + 1 / 2) / 2,
            "jaccard_center": 100 * (0 + 1 / 4) / 2,
            "mass": 100 * (0.45 + 0.9) / 2,
            "area": 100 * (1 / 4 + 1 / 2) / 2,
            "gaussian_mass": 100 * (1 / 4 + 1 / 2) / 2,
            "auc": 100 * (2.5 / 3 + 1) / 2,
            "gaussian_auc": 50,
        }
    )
    assert overlap.by_head() == pytest.approx([75, 25])


def test_the_overlap_of_a_diverged_network_is_nan() -> None:
    overlap = Overlap(0.6)
    overlap.add(torch.full((2, 2, 2), torch.nan), torch.eye(4, dtype=torch.uint8))
    figures = overlap.figures()
    assert np.isnan([figures["jaccard_mean"], figures["jaccard_best_head"], figures["auc"]]).all()
    assert figures["jaccard_even"] == 25


def test_mask_files(tmp_path: Path) -> None:
    indices = np.array([[0, 1, 15], [255, 20, 0]], dtype=np.uint8)
    palette = Image.fromarray(indices)
    palette.putpalette([value for number in range(256) for value in (255 - number, 7, 7)])
    palette.save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as palette:
        assert palette.mode == "P"
    expected = [[0, OBJECT, OBJECT], [VOID, OBJECT, 0]]
    assert read_mask(tmp_path / "palette.png").tolist() == expected
    Image.fromarray(indices).save(tmp_path / "gray.png")
    assert read_mask(tmp_path / "gray.png").tolist() == expected
    # black and white
    Image.fromarray(np.where(indices == 15, 255, 0).astype(np.uint8)).save(tmp_path / "white.png")
    assert read_mask(tmp_path / "white.png").tolist() == [[0, 0, OBJECT], [0, 0, 0]]
    Image.fromarray(indices == 15).save(tmp_path / "bits.png")
    assert read_mask(tmp_path / "bits.png").tolist() == [[0, 0, OBJECT], [0, 0, 0]]

    Image.new("RGB", (3, 2)).save(tmp_path / "colors.png")
    with pytest.raises(UserError, match=r"colors\.png: a mask with 3 channels"):
        read_mask(tmp_path / "colors.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.png: the mask cannot be read"):
        read_mask(tmp_path / "broken.png")
