"""`init_adapt`: the adapted network computes what the file's network does, as far as its input allows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dino_exp import cli
from dino_exp.backbone.library import timm_backbone, torchvision_backbone
from dino_exp.backbone.vit import VisionTransformer
from dino_exp.config.compose import check, compose
from dino_exp.config.identity import run_id
from dino_exp.dino.model import DINONetwork
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training import checkpoint
from dino_exp.weights.adapt_input import Adaptation
from dino_exp.weights.load_into import LoadReport, load_into
from dino_exp.weights.networks_in_file import network_at

IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def vit(patch_size: int = 16, channels: int = 3, stem: str = "patch", image_size: int = 64) -> nn.Module:
    torch.manual_seed(patch_size + channels)
    sizes: dict[str, Any] = dict(embed_dim=32, depth=2, num_heads=2, image_size=image_size)
    return VisionTransformer(patch_size=patch_size, in_channels=channels, stem=stem, **sizes)


def library(build: Any, channels: int, **options: Any) -> nn.Module:
    torch.manual_seed(channels)
    return build(in_channels=channels, image_size=64, **options)


def load(source: nn.Module, target: nn.Module, channels: int, *allowed: str) -> LoadReport:
    network = DINONetwork(target, nn.Identity())
    adapt = Adaptation(channels, frozenset(allowed))
    return load_into(network, network_at(source.state_dict(), ""), Path("w.pth"), head=False, adapt=adapt)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Fail unless features differ by rounding alone."""
    assert (found - expected).norm() <= 1e-3 * expected.norm()
    assert expected.std() > 0


@torch.no_grad()
def features(network: nn.Module, images: Tensor) -> Tensor:
    return network.eval()(images)


FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "patches": (vit, {}),
    "convolutional stem": (vit, {"stem": "conv"}),
    "timm": (library, {"build": timm_backbone, "name": "convnext_atto", "drop_path_rate": 0.0}),
    "timm, a stem of branches": (
        library,
        {"build": timm_backbone, "name": "mobileone_s0", "drop_path_rate": 0.0},
    ),
    "torchvision": (library, {"build": torchvision_backbone, "name": "resnet18", "stem": "small"}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_for_other_channels_has_the_features_of_the_original(family: str) -> None:
    build, options = FAMILIES[family]
    original, nine, one = (build(channels=channels, **options) for channels in (3, 9, 1))
    report = load(original, nine, 9, "channels")
    assert "3 -> 9 channels (repeated, times 3/9)" in report.sentence()
    assert_same(features(nine, IMAGES.repeat(1, 3, 1, 1)), features(original, IMAGES))
    assert "3 -> 1 channels (summed)" in load(original, one, 1, "channels").sentence()
    gray = IMAGES[:, :1]
    expected = features(original, gray.expand(-1, 3, -1, -1))
    assert_same(features(one, gray), expected)

    back = build(channels=3, **options)
    assert "9 -> 3 channels (the first 3, times 9/3)" in load(nine, back, 3, "channels").sentence()
    assert_same(features(back, IMAGES), features(original, IMAGES))


@pytest.mark.parametrize("channels", [1, 2, 4, 10])
def test_channels_follow_the_rule_of_timm(channels: int) -> None:
    source, target = vit(), vit(channels=channels)
    load(source, target, channels, "channels")
    expected = timm.models.adapt_input_conv(channels, source.get_parameter("patch_embed.proj.weight"))
    torch.testing.assert_close(target.get_parameter("patch_embed.proj.weight"), expected)


def test_larger_patches_see_resized_images_as_the_original_does() -> None:
    original, target = vit(patch_size=8, image_size=64), vit(patch_size=16, image_size=128)
    report = load(original, target, 3, "patch")
    assert report.adapted == ["patch_embed.proj: 8 -> 16 pixels (pseudo-inverse resize)"]
    assert report.resized == ""
    # each patch resized by itself, which the pseudo-inverse undoes
    patches = IMAGES.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)
    large = F.interpolate(patches.flatten(0, 2), size=16, mode="bicubic", antialias=True)
    large = large.unflatten(0, (4, 8, 8)).permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 128, 128)
    assert_same(features(target, large), features(original, IMAGES))


@pytest.mark.parametrize(("before", "after"), [(16, 8), (16, 14), (14, 8), (8, 16)])
@pytest.mark.parametrize("ours", [True, False])
def test_smooth_images_have_nearly_the_same_features_with_other_patches(
    before: int, after: int, ours: bool
) -> None:
    """Much nearer than those of a network whose patches are new."""
    rough = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    small, large = (
        F.interpolate(rough, size=4 * size, mode="bicubic", antialias=True) for size in (before, after)
    )
    if ours:
        original, target, new = (vit(size, image_size=4 * size) for size in (before, after, after))
    else:
        names = [f"vit_tiny_patch16_224.{size}" for size in (before, after, after)]
        original, target, new = (timm_vit(int(name.partition(".")[2])) for name in names)
    load(original, target, 3, "patch")
    with torch.no_grad():
        for name, value in target.named_parameters():
            if "patch_embed" not in name:
                new.get_parameter(name).copy_(value)
    wanted = differences(original, small)
    assert (wanted * differences(target, large)).sum(1).mean() > 0.9
    assert (wanted * differences(new, large)).sum(1).mean() < 0.5


def differences(network: nn.Module, images: Tensor) -> Tensor:
    """Return the directions in which the features of images differ from their mean."""
    found = features(network, images)
    return F.normalize(found - found.mean(0))


def timm_vit(patch_size: int) -> nn.Module:
    torch.manual_seed(patch_size)
    sizes = dict(img_size=4 * patch_size, patch_size=patch_size, embed_dim=32, depth=2, num_heads=2)
    return timm.models.VisionTransformer(**sizes, num_classes=0, global_pool="token")  # type: ignore[arg-type]


def test_what_cannot_be_adapted_is_refused_and_what_can_names_the_key() -> None:
    both = r"adapt it \(3 -> 10 channels and 16 -> 8 pixels\) with init_adapt=\[channels,patch\], or choose"
    for allowed in ([], ["channels"], ["patch"]):
        with pytest.raises(UserError, match=both):
            load(vit(), vit(8, 10), 10, *allowed)
    report = load(vit(), vit(8, 10), 10, "channels", "patch")
    assert report.sentence().endswith(
        "patch_embed.proj: 3 -> 10 channels (repeated, times 3/10), 16 -> 8 pixels (pseudo-inverse resize); "
        "position embedding resized from 4x4 to 8x8 patches"
    )
    small = torchvision_backbone(name="resnet18", stem="small", in_channels=1, image_size=32)
    with pytest.raises(UserError, match=r"\(64, 3, 7, 7\), the network's \(64, 1, 3, 3\); the file contains"):
        load(torchvision.models.resnet18(), small, 1, "channels", "patch")
    with pytest.raises(UserError, match=r"transformer with a convolutional stem .*: choose that backbone"):
        load(vit(16, stem="conv"), vit(8, stem="conv"), 3, "channels", "patch")
    rearranged = {"build": timm_backbone, "name": "tresnet_m", "drop_path_rate": 0.0}  # pixels as channels
    with pytest.raises(UserError, match=r"has shape \(64, 48, 3, 3\), the network's \(64, 64, 3, 3\); the f"):
        load(library(channels=3, **rearranged), library(channels=4, **rearranged), 4, "channels", "patch")


WORDS = ("experiment=debug", "trainer.max_steps=1", "backbone.stem=patch")
GRAY = ("data.channels=1", "data.mean=[0.5]", "data.std=[0.25]")


def test_a_run_begins_with_both_networks_adapted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert cli.main([*WORDS, "name=source"]) == 0
    (source,) = (tmp_path / "outputs" / "source").iterdir()
    other = [
        *WORDS,
        *GRAY,
        "backbone.patch_size=8",
        f"init_from={source}",
        "optimizer.lr=0",
        "ema.momentum=1",
    ]
    capsys.readouterr()
    assert cli.main([*other, "name=refused"]) == 2
    assert "with init_adapt=[channels,patch]" in capsys.readouterr().err
    assert cli.main([*other, "init_adapt=[patch,channels]"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    done = "patch_embed.proj: 3 -> 1 channels (summed), 4 -> 8 pixels (pseudo-inverse resize); position "
    for role in ("teacher", "student"):
        assert f"{role} its {role}'s backbone and head: 50 tensors; {done}" in printed
    assert "center the file's, with norm" in printed
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"source", "debug"}
    (run,) = (tmp_path / "outputs" / "debug").iterdir()
    before, after = (checkpoint.load(each / "checkpoints" / "last.pt") for each in (source, run))
    for role in ("teacher", "student"):
        assert torch.equal(after[role]["head.mlp.0.weight"], before[role]["head.mlp.0.weight"])
        summed = before[role]["backbone.patch_embed.proj.weight"].sum(1, keepdim=True)
        expected = timm.layers.resample_patch_embed(summed, [8, 8])
        torch.testing.assert_close(after[role]["backbone.patch_embed.proj.weight"], expected)
    assert RunDirectory(run).read_summary()["initial_knn_top1"] > 0


def test_every_run_of_a_sweep_is_checked_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    backbone = compose(WORDS).backbone
    names = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    four = VisionTransformer(image_size=32, **{name: getattr(backbone, name) for name in names})
    torch.save(four.state_dict(), "four.pth")
    assert cli.main(["-m", *WORDS, "init_from=four.pth", "backbone.patch_size=4,8", "trainer.seed=0,1"]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert printed.startswith("four.pth: backbone.patch_embed.proj.weight has shape (64, 3, 4, 4), the ")
    assert "(2 of 4 runs, first backbone.patch_size=8 trainer.seed=0)" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["four.pth"]


def test_init_adapt_is_part_of_the_identity_beside_init_from_alone(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.pth")
    start = f"init_from={tmp_path}/w.pth"
    ids = [
        run_id(compose([*WORDS, start, *words]))
        for words in ([], ["init_adapt=null"], ["init_adapt=[]"], ["init_adapt=[channels]"])
    ]
    assert len(set(ids[:3])) == 1
    assert ids[3] != ids[0]
    orders = ("init_adapt=[channels,patch]", "init_adapt=[patch,channels]")
    assert len({run_id(compose([*WORDS, start, words])) for words in orders}) == 1
    assert check([*WORDS, "init_adapt=[patch]"]).errors == [
        "init_adapt = [patch]: adapts weights; set init_from as well, or neither."
    ]
    assert check([*WORDS, start, "init_adapt=[channel]"]).errors == [
        "init_adapt = [channel]: must be channels or patch; did you mean channels?"
    ]
