import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from dino_exp.errors import UserError
from dino_exp.eval.attention.attend import AttentionMass, attend, attention_mass, enlarged, patch_attention
from tests.eval.subjects import Lit, Looker, subject


def test_mass_area_and_auc_by_hand() -> None:
    # Mean of the heads: 0.5, 0.1, 0.1, 0.3 of what reaches the patches. The object covers all of the first
    # patch and a quarter of the second, which therefore counts as outside for the AUC: mass 0.5 + 0.1 / 4,
    # area (1 + 1/4) / 4. By symmetry the Gaussian's patches weigh a quarter each.
    head_a = torch.tensor([[0.6, 0.0], [0.0, 0.2]])
    head_b = torch.tensor([[0.2, 0.16], [0.16, 0.28]])
    attention = torch.stack([head_a, head_b])[None]
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4, :4] = True
    mask[:, :2, 4:6] = True
    got = attention_mass(attention, mask)
    total = 0.4 + 0.24 + 0.08 + 0.08
    assert got.mass == pytest.approx((0.4 + 0.08 / 4) / total)
    assert got.area == pytest.approx(1.25 / 4)
    assert got.gaussian_mass == pytest.approx(1.25 / 4)
    assert got.auc == 1.0
    assert got.gaussian_auc == 0.5
    assert got.images == 1


def test_auc_counts_ties_half_and_skips_images_without_both_kinds_of_patch() -> None:
    attention = torch.tensor([[4.0, 2.0, 2.0, 1.0], [9.0, 9.0, 9.0, 9.0]]).view(2, 1, 2, 2)
    masks = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]], dtype=torch.bool).view(2, 2, 2)
    got = attention_mass(attention, masks)
    # Object 2 and 1 against 4 and 2: of four pairs one is a tie.
    assert got.auc == pytest.approx(0.5 / 4)
    assert got.mass == pytest.approx((3 / 9 + 1) / 2)
    assert math.isnan(attention_mass(attention[1:], masks[1:]).auc)
    assert math.isnan(attention_mass(attention * math.nan, masks).auc)


def test_sigma_of_the_gaussian_is_a_quarter_of_the_side() -> None:
    # Inner half per axis: erf-like mass between -1 and 1 sigma out of -2 to 2, squared for two axes.
    masks = torch.zeros(1, 512, 512, dtype=torch.bool)
    masks[:, 128:384, 128:384] = True
    got = attention_mass(torch.ones(1, 1, 512, 512), masks)
    one_axis = math.erf(1 / math.sqrt(2)) / math.erf(2 / math.sqrt(2))
    assert got.gaussian_mass == pytest.approx(one_axis**2, abs=1e-4)
    assert got.mass == pytest.approx(0.25)


def test_attention_mass_of_the_images_of_a_source() -> None:
    network = replace(subject(Looker(dark=0.0), image_size=8), mean=(0.0,) * 3, std=(1.0,) * 3)
    network.backbone.train()
    seen = attend(network, Lit(5), [4, 0, 2], batch_size=2)
    assert network.backbone.training
    assert seen.indices == [4, 0, 2]
    assert seen.attention.shape == (3, 2, 2, 2)
    assert seen.masks is not None
    got = attention_mass(seen.attention, seen.masks)
    assert got.area == pytest.approx(0.25)
    assert got.mass == pytest.approx((1 + 0.25) / 2)  # one head is all on the object, the other even

    # Masks are resized and cropped like their images.
    larger = attend(replace(network, crop_ratio=0.5), Lit(2, side=32), [1])
    assert larger.images.shape == (1, 3, 8, 8)
    assert larger.masks is not None
    assert torch.equal(larger.masks[0] > 0.5, larger.images[0, 0] > 127)


def test_the_sentence_gives_the_baselines() -> None:
    now = AttentionMass(0.61, 0.21, 0.35, 0.86, 0.7, 300)
    before = AttentionMass(0.214, 0.21, 0.35, 0.53, 0.7, 300)
    assert now.sentence(before) == (
        "attention inside the mask 61% (untrained 21%, centered Gaussian 35%, mask area 21%); "
        "AUC 0.86 (untrained 0.53, centered Gaussian 0.70)"
    )


def test_enlarged_maps_are_constant_on_each_patch() -> None:
    network = Looker(dark=0.0)
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    maps = enlarged(patch_attention(network, image), image.shape[-2:])
    assert maps.shape == (1, 2, 8, 8)
    patches = network.eval().class_attention(image)
    assert torch.equal(maps[0, :, 3, 4], patches[0, :, 0, 1])
    assert torch.equal(maps[0, :, 4, 3], patches[0, :, 1, 0])


def test_backbones_without_class_attention_are_refused() -> None:
    with pytest.raises(UserError, match=r"Flatten has no class-token attention.*backbone=vit"):
        patch_attention(nn.Flatten(), torch.zeros(1, 3, 8, 8))
