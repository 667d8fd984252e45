"""The vision transformer: the released code's names, initialization, positions and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dino_exp.backbone.execution import checkpoint_blocks
from dino_exp.backbone.randomness import random_operations
from dino_exp.backbone.vit import Block, VisionTransformer, by_resolution
from dino_exp.errors import UserError

SMALL = dict(patch_size=4, embed_dim=64, depth=3, num_heads=2, mlp_ratio=2.0, image_size=32)
SIZES = ((3, (32, 32)), (4, (16, 16)), (2, (8, 24)))
"""Numbers and sizes of images."""


def small_vit(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**(SMALL | changes))


def test_vit_small_16_has_the_released_parameters() -> None:
    with torch.device("meta"):
        model = small_vit(patch_size=16, embed_dim=384, depth=12, num_heads=6, mlp_ratio=4.0, image_size=224)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    block = {
        "norm1": (384,),
        "attn.qkv": (1152, 384),
        "attn.proj": (384, 384),
        "norm2": (384,),
        "mlp.fc1": (1536, 384),
        "mlp.fc2": (384, 1536),
    }
    layers = {"patch_embed.proj": (384, 3, 16, 16), "norm": (384,)}
    layers |= {f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    expected: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384)}
    for name, shape in layers.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected
    assert sum(value.numel() for value in model.parameters()) == 21_665_664
    assert {module.eps for module in model.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-6}


def test_initial_weights() -> None:
    model = small_vit(embed_dim=384, num_heads=6, depth=1, mlp_ratio=4.0, patch_size=16, image_size=224)
    block = model.blocks[0]
    assert isinstance(block, Block)
    attention, mlp = block.attn, block.mlp
    for linear in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert linear.bias.abs().max() == 0
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.15)
    # the patch convolution keeps its default: uniform within 1 / sqrt(3·16·16)
    bound = (3 * 16 * 16) ** -0.5
    assert model.patch_embed.proj.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    assert 0.5 * bound < model.get_parameter("patch_embed.proj.bias").abs().max().item() <= bound
    assert model.norm.weight.min() == model.norm.weight.max() == 1


def test_xavier_initialization_of_the_blocks() -> None:
    block = small_vit(init="xavier").blocks[1]
    assert isinstance(block, Block)
    for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert linear.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert linear.bias.abs().max() == 0


def test_centered_initialization_is_xavier_less_the_mean_of_each_outputs_weights() -> None:
    xavier = small_vit(stem="conv", init="xavier").state_dict()
    centered = small_vit(stem="conv", init="xavier_centered")
    layers = [
        name for name, m in centered.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)
    ]
    assert layers[0] == "patch_embed.stem.0"
    assert torch.equal(
        centered.get_parameter("patch_embed.stem.0.weight"), xavier["patch_embed.stem.0.weight"]
    )
    for name in layers[1:]:
        weight, before = (
            centered.get_parameter(f"{name}.weight").flatten(1),
            xavier[f"{name}.weight"].flatten(1),
        )
        torch.testing.assert_close(weight, before - before.mean(1, keepdim=True))


def test_images_start_apart_with_centered_initialization() -> None:
    """Measured as the share of the class token's squared length that is the same for all images."""

    def common(init: str) -> float:
        features = small_vit(stem="conv_group_norm", init=init)(torch.randn(64, 3, 32, 32).mul(2))
        return (features.mean(0).square().sum() / features.square().sum(1).mean()).item()

    assert common("xavier_centered") < 0.8 * common("xavier")


def bicubic_matrix(stored: int, wanted: int) -> np.ndarray:
    """Return the weights (wanted, stored) of a bicubic resize by (wanted + 0.1) / stored, with a = -0.75."""
    weights = np.zeros((wanted, stored))
    for row in range(wanted):
        source = (row + 0.5) * stored / (wanted + 0.1) - 0.5
        for tap in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
            x, a = abs(source - tap), -0.75
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[row, min(max(tap, 0), stored - 1)] += near if x <= 1 else far
    return weights


@pytest.mark.parametrize(("height", "width"), [(6, 6), (6, 14), (20, 9), (1, 2)])
def test_positions_are_resized_bicubically_by_the_released_scale_factor(height: int, width: int) -> None:
    model = small_vit(patch_size=16, image_size=224).double()
    stored = model.pos_embed[0, 1:].detach().numpy().reshape(14, 14, 64)
    rows, columns = bicubic_matrix(14, height), bicubic_matrix(14, width)
    expected = torch.from_numpy(np.einsum("hi,wj,ijd->hwd", rows, columns, stored).reshape(1, -1, 64))
    torch.testing.assert_close(model.patch_positions(height, width).detach(), expected, rtol=0, atol=1e-12)


def test_resizing_to_the_target_size_or_with_antialiasing_gives_other_positions() -> None:
    model = small_vit(patch_size=16, image_size=224, depth=2).double()
    crops = torch.randn(4, 3, 96, 96, dtype=torch.float64)
    grid = model.pos_embed[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    ours = model.patch_positions(6, 6)
    for antialias, least in ((False, 0.14), (True, 0.35)):
        other = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=antialias)
        other = other.flatten(2).transpose(1, 2)
        assert ((other - ours).norm() / ours.norm()).item() > least
    assert torch.equal(model.patch_positions(14, 14), model.pos_embed[:, 1:])
    assert model(crops).shape == (4, 64)


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 40)])
def test_the_feature_is_the_class_token_after_the_final_norm(size: tuple[int, int]) -> None:
    model = small_vit(stem="conv", drop_path_rate=0.0).double()
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    feature = model(images)
    (tokens,) = model.intermediate_tokens(images, 1)
    assert tokens.shape == (3, 1 + size[0] * size[1] // 16, 64)
    torch.testing.assert_close(feature, tokens[:, 0], rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(feature.square().sum(), list(model.parameters()))
    expected = torch.autograd.grad(tokens[:, 0].square().sum(), list(model.parameters()))
    for (name, _), ours, plain in zip(model.named_parameters(), gradients, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-10, msg=f"{name}: {{}}".format)


def plain_block(block: Block, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute a block as the released code does; return tokens and attention (B, heads, N, N)."""
    batch, tokens, dim = x.shape
    heads = block.attn.num_heads
    qkv = block.attn.qkv(block.norm1(x)).reshape(batch, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
    attention = (qkv[0] @ qkv[1].transpose(-2, -1) * (dim // heads) ** -0.5).softmax(dim=-1)
    x = x + block.attn.proj((attention @ qkv[2]).transpose(1, 2).reshape(batch, tokens, dim))
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x)))), attention


def test_blocks_and_attention_equal_the_released_arithmetic() -> None:
    model = small_vit(num_heads=4).double()
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    patches = F.conv2d(images, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=4)
    x = torch.cat((model.cls_token.expand(2, -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
    x = x + torch.cat((model.pos_embed[:, :1], model.patch_positions(4, 6)), dim=1)
    layers = []
    for block in model.blocks:
        assert isinstance(block, Block)
        x, attention = plain_block(block, x)
        layers.append(F.layer_norm(x, (64,), model.norm.weight, model.norm.bias, 1e-6))
    for ours, expected in zip(model.intermediate_tokens(images, 2), layers[1:], strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    weights = model.class_attention(images)
    assert weights.shape == (2, 4, 4, 6)
    torch.testing.assert_close(weights, attention[:, :, 0, 1:].unflatten(2, (4, 6)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_one_pass_over_several_sizes_equals_one_for_each(
    recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_vit(drop_path_rate=0.5).double()
    images = [torch.randn(count, 3, *size, dtype=torch.float64) for count, size in SIZES]
    drawn = torch.bernoulli(torch.full((6, 9), 0.5, dtype=torch.float64))
    found = []
    for passes in ([images], [[each] for each in images]):
        draws = iter(drawn.split([sum(map(len, each)) for each in passes], dim=1))
        monkeypatch.setattr(torch, "bernoulli", lambda _, draws=draws: next(draws))
        if recompute and len(passes) == 1:
            checkpoint_blocks(model, name="it")
        features = torch.cat([model(each) for each in passes])
        gradients = torch.autograd.grad(features.sin().sum(), list(model.parameters()))
        found.append((features.detach(), dict(zip(dict(model.named_parameters()), gradients, strict=True))))
    assert found[0][0].shape == (9, 64)
    assert all(gradient.abs().max() > 0 for gradient in found[1][1].values())
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_a_pass_over_all_sizes_draws_once_and_a_teacher_nothing() -> None:
    images = [torch.randn(count, 3, *size) for count, size in SIZES]
    student, teacher = (small_vit(depth=9, drop_path_rate=rate) for rate in (0.2, 0.0))
    assert random_operations(student, images) == ["bernoulli"]
    assert random_operations(teacher, images) == []
    assert student.state_dict().keys() == teacher.state_dict().keys()
    assert not torch.equal(student(images), student(images))
    torch.testing.assert_close(student.eval()(images), teacher(images))  # same seed, same weights


def test_stochastic_depth_grows_linearly_and_drops_entire_crops() -> None:
    factors = small_vit(depth=5, drop_path_rate=0.4).branch_factors(((4000, 2), (4000, 3)))
    assert factors is not None
    assert [tuple(each.shape) for each in factors] == 4 * [(2, 20000, 1)] + [(2, 8000, 1)]
    for each, keep in zip(factors, (1, 0.9, 0.8, 0.7, 0.6), strict=True):
        shapes = ((4000, 1), (4000, 1)) if each is factors[-1] else ((4000, 2), (4000, 3))
        parts = by_resolution(each.squeeze(-1).T, shapes)
        assert all(torch.equal(part, part[:, :1].expand_as(part)) for part in parts)
        crops = torch.cat([part[:, 0] for part in parts])
        assert crops.unique().tolist() == pytest.approx([1 / keep] if keep == 1 else [0, 1 / keep])
        torch.testing.assert_close(crops.mean(dim=0), torch.ones(2), rtol=0, atol=0.03)
        assert torch.equal(crops[:, 0], crops[:, 1]) == (keep == 1)


def test_a_block_multiplies_its_branches_by_the_factors() -> None:
    block = small_vit().double().blocks[1]
    assert isinstance(block, Block)
    shapes, x = ((2, 3), (1, 5)), torch.randn(11, 64, dtype=torch.float64)
    attention, mlp = torch.rand(2, 11, 1, dtype=torch.float64)
    attention[3:6] = mlp[3:6] = 0
    middle = x + attention * block.attn(block.norm1(x), shapes)
    expected = middle + mlp * block.mlp(block.norm2(middle))
    found = block(x, shapes, torch.stack([attention, mlp]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(found[3:6], x[3:6])


def test_a_stem_with_group_norm_treats_each_image_alone_and_keeps_no_statistics() -> None:
    model = small_vit(stem="conv_group_norm", drop_path_rate=0.0).double()
    assert not list(model.buffers())
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    others = torch.cat([images[:1], 5 * torch.randn(2, 3, 32, 32, dtype=torch.float64)])
    model.train()
    torch.testing.assert_close(model(images)[0], model(others)[0])
    torch.testing.assert_close(model(images), model.eval()(images))
    groups = [m.num_groups for m in model.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert groups
    assert set(groups) == {8}


def test_the_convolutional_stem_of_patch_4() -> None:
    model = small_vit(stem="conv", init="xavier")
    convolutions = [m for m in model.patch_embed.modules() if isinstance(m, torch.nn.Conv2d)]
    described = [(c.in_channels, c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions]
    assert described == [(3, 24, 3, 2), (24, 24, 3, 1), (24, 48, 3, 2), (48, 64, 1, 1)]
    assert model.patch_embed.stem is not None
    kinds = [type(module).__name__ for module in model.patch_embed.stem]
    assert kinds == 3 * ["Conv2d", "BatchNorm2d", "ReLU"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_296
    deep = small_vit(stem="conv", patch_size=16, image_size=64, in_channels=1)
    assert deep.patch_embed.stem is not None
    widths = [c.out_channels for c in deep.patch_embed.stem if isinstance(c, torch.nn.Conv2d)]
    assert widths == [8, 8, 12, 24, 48]
    assert deep(torch.randn(2, 1, 32, 32)).shape == (2, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_heads": 5},
            r"backbone.num_heads = 5: .* backbone.embed_dim = 64; the nearest that does is 4\.",
        ),
        ({"image_size": 34}, r"crops.global_size = 34: .* backbone.patch_size = 4; nearest are 32 and 36\."),
        (
            {"stem": "conv", "patch_size": 6, "image_size": 36},
            r"patch_size = 6: .* a power of two; nearest are 4 and 8\.",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_explained(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_vit(**changes)
