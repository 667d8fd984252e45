"""A network is found in a file whatever its names begin with, and the file's choice of names is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dino_exp.backbone.library import timm_backbone
from dino_exp.errors import UserError
from dino_exp.weights.load_into import load_into
from dino_exp.weights.read_weights import Weights, read_weights
from tests.weights.tiny_networks import network, tiny_vit

State = dict[str, Tensor]


def reading(file: Path, content: Any, backbone: nn.Module) -> Weights:
    torch.save(content, file)
    return read_weights(file, backbone.state_dict())


def named(prefix: str, seed: int = 1) -> State:
    return {f"{prefix}{name}": value for name, value in tiny_vit(seed=seed).state_dict().items()}


def assert_is(found: State | None, seed: int) -> None:
    """The network's tensors are those of `tiny_vit(seed)`, and load."""
    assert found is not None
    target = tiny_vit(seed=9)
    report = load_into(network(target), found, Path("weights.pth"), head=False)
    assert report.unexpected == []
    for name, value in tiny_vit(seed=seed).state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.backbone.",
        "backbone.",
        "encoder.",
        "momentum_encoder.",
        "net.model.",
        "student_backbone.",
        "module.encoder_q.",
        "model.teacher_backbone._orig_mod.",
        "a.name.that.nobody.has.thought.of.",
    ],
)
@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model_state_dict",), ("ema", "params")])
def test_prefixes_and_wrappers_do_not_matter(tmp_path: Path, prefix: str, keys: tuple[str, ...]) -> None:
    shown = prefix.replace("_orig_mod.", "")
    content: dict[str, Any] = named(prefix) | ({"loss.weight": torch.ones(3)} if shown else {})
    for key in keys:
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    weights = reading(tmp_path / "w.pth", content, tiny_vit())
    assert_is(weights.teacher, 1)
    assert weights.student is None
    found = "".join(f"{key}." for key in reversed(keys)) + shown
    assert weights.kind == "one network's weights" + (f", under {found}" if found else "")


def test_wrappers_inside_a_network_do_not_matter(tmp_path: Path) -> None:
    inside = {name.replace("blocks.0.", "blocks.0._orig_mod."): v for name, v in named("backbone.").items()}
    inside = {name.replace(".attn.", "._fsdp_wrapped_module.attn."): v for name, v in inside.items()}
    assert_is(reading(tmp_path / "w.pth", {"model": inside}, tiny_vit()).teacher, 1)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("teacher.backbone.", "student.backbone."),
        ("teacher_backbone.", "student_backbone."),
        ("module.encoder_k.", "module.encoder_q."),
        ("momentum_backbone.", "backbone."),
        ("target_network.net.", "online_network.net."),
        ("state_dict_ema.", "state_dict."),
    ],
)
def test_of_two_networks_that_fit_the_one_that_follows_is_the_teacher(
    tmp_path: Path, teacher: str, student: str
) -> None:
    content = named(student, seed=2) | named(teacher, seed=1)
    weights = reading(tmp_path / "w.pth", {"state_dict": content}, tiny_vit())
    assert_is(weights.teacher, 1)
    assert_is(weights.student, 2)
    assert weights.kind == f"the weights of two networks, under state_dict.{teacher} and state_dict.{student}"


def test_two_networks_without_a_teacher_are_refused_by_their_prefixes(tmp_path: Path) -> None:
    content = {"old": named(""), "new": named("module.")}
    with pytest.raises(
        UserError, match=r"w.pth: contains 2 networks that fit, under 'new.module.' and 'old.'"
    ):
        reading(tmp_path / "w.pth", content, tiny_vit())


def test_of_two_networks_the_one_of_the_right_size_is_taken(tmp_path: Path) -> None:
    larger = {f"teacher.{name}": torch.zeros(3, *value.shape) for name, value in named("").items()}
    assert_is(reading(tmp_path / "w.pth", larger | named("student."), tiny_vit()).teacher, 1)


def test_mappings_that_contain_themselves_or_one_another_thousandfold_are_read_once(tmp_path: Path) -> None:
    content: dict[str, Any] = {"net": named("")}
    for _ in range(60):
        content = {"a": content, "b": content}
    content["self"] = content
    content["." * 100_000] = torch.ones(1)
    assert_is(reading(tmp_path / "w.pth", content, tiny_vit()).teacher, 1)


def dinov2(reg: bool) -> nn.Module:
    """Build timm's DINOv2 architecture with few blocks."""
    options: dict[str, Any] = {"reg_tokens": 4, "no_embed_class": True} if reg else {}
    torch.manual_seed(1)
    model = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, depth=2, img_size=56, dynamic_img_size=True, **options
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def as_released(state: State, reg: bool) -> State:
    """Give a network's tensors the names that facebookresearch/dinov2 has."""
    released = {("register_tokens" if name == "reg_token" else name): v for name, v in state.items()}
    if reg:  # the class token's position is added to it in timm's network
        position = torch.full((1, 1, 384), 0.25)
        released["cls_token"] = released["cls_token"] - position
        released["pos_embed"] = torch.cat([position, released["pos_embed"]], dim=1)
    return released | {"mask_token": torch.zeros(1, 384)}


def in_chunks(state: State) -> State:
    """Name blocks as the training of DINOv2 does, with its wrapper and its head."""
    chunked = {name.replace("blocks.", "blocks.0."): value for name, value in state.items()}
    return {f"backbone.{name}": value for name, value in chunked.items()} | {
        "dino_head.last_layer.weight_v": torch.ones(3, 2)
    }


@pytest.mark.parametrize("reg", [False, True])
@pytest.mark.parametrize("layout", [lambda state: state, lambda state: {"teacher": in_chunks(state)}])
def test_released_dinov2_weights_give_timm_the_same_features(
    tmp_path: Path, reg: bool, layout: Callable[[State], Any]
) -> None:
    source, target = dinov2(reg), dinov2(reg)
    nn.init.zeros_(target.get_parameter("cls_token"))
    content = layout(as_released(dict(source.state_dict()), reg))
    weights = reading(tmp_path / "w.pth", content, target)
    load_into(network(target, width=384), weights.teacher, weights.file, head=False)
    images = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(target(images), source(images), rtol=0, atol=1e-5)


def test_the_gated_mlp_of_dinov2s_largest_network_has_timms_names(tmp_path: Path) -> None:
    target = timm.create_model("vit_giant_patch14_dinov2", num_classes=0, depth=1, embed_dim=96, num_heads=2)
    released = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): torch.full_like(value, 0.5)
        for name, value in target.state_dict().items()
    }
    weights = reading(tmp_path / "w.pth", released, target)
    load_into(network(target, width=96), weights.teacher, weights.file, head=False)
    assert target.get_parameter("blocks.0.mlp.fc2.weight").unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("name", "reg", "patch"),
    [("vit_small_patch14_dinov2", False, 14), ("vit_small_patch14_reg4_dinov2", True, 14), ("", False, 8)],
)
def test_another_network_is_described_with_options_that_fit(
    tmp_path: Path, name: str, reg: bool, patch: int
) -> None:
    build = name or "vit_small_patch8_224"
    with torch.device("meta"):
        model = timm_backbone(name=build, drop_path_rate=0.0, in_channels=3, image_size=4 * patch)
    state = {key: torch.zeros(value.shape) for key, value in model.state_dict().items()}
    content = as_released(state, reg) if name else state
    weights = reading(tmp_path / "w.pth", {"model": content}, tiny_vit())
    with pytest.raises(UserError) as refusal:
        load_into(network(tiny_vit()), weights.teacher, weights.file, head=False)
    parts = ", ".join(["12 blocks"] + [f"patches of {patch}"] * bool(name))
    described = {
        "": "with 12 blocks and patches of 8: set backbone=vit_small backbone.patch_size=8.",
        "vit_small_patch14_dinov2": f"{parts} and layer scale: set backbone=timm backbone.name={name}, with",
        "vit_small_patch14_reg4_dinov2": f"{parts}, layer scale and 4 registers: set backbone=timm "
        f"backbone.name={name}, with crops.global_size and crops.local_size multiples of 14.",
    }
    assert described[name] in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "whose"),
    [
        (
            ("vit.embeddings.cls_token", "vit.encoder.layer.0.attention.attention.query.weight"),
            "Hugging Face's transformers",
        ),
        (("backbone.0.weight", "backbone.4.0.conv1.weight"), "an nn.Sequential, which are numbers"),
    ],
)
def test_layers_with_other_names_are_refused_with_whose_they_are(
    tmp_path: Path, names: tuple[str, ...], whose: str
) -> None:
    weights = reading(tmp_path / "w.pth", {name: torch.ones(2) for name in names}, tiny_vit())
    with pytest.raises(UserError, match=f"names of {whose}; convert them to those of timm or torchvision"):
        load_into(network(tiny_vit()), weights.teacher, weights.file, head=False)


def test_what_a_network_lacks_is_the_reason_for_a_file_that_has_more(tmp_path: Path) -> None:
    weights = reading(tmp_path / "w.pth", named("") | {"decoder.weight": torch.ones(2)}, tiny_vit())
    with pytest.raises(UserError, match=r"the network has no backbone.decoder.weight; .* or save the file"):
        load_into(network(tiny_vit()), weights.teacher, weights.file, head=False)
