"""Exported weights have the trained network's features in timm, the released code, torch.hub and ONNX."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch

from dino_exp.backbone.vit import VisionTransformer
from dino_exp.config.compose import compose
from dino_exp.errors import UserError
from dino_exp.export import to_onnx, to_released, to_timm, to_torchhub
from dino_exp.export.export_command import main
from dino_exp.export.trained import Trained
from dino_exp.training import checkpoint
from dino_exp.training.run import train
from tests.export.exported import IMAGES, code_in, features, untrained


def test_timm_loads_the_weights_as_the_card_says(
    patch_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for network in ("teacher", "student"):
        out = tmp_path / network
        assert main([f"run={patch_run}", "format=timm", f"network={network}", f"out={out}"]) == 0
        monkeypatch.chdir(out)
        names = {"images": IMAGES}
        with torch.no_grad():
            exec(code_in(out), names)
        expected = features(patch_run, network)
        torch.testing.assert_close(names["features"], expected, rtol=0, atol=1e-5)
    assert not torch.equal(features(patch_run), features(patch_run, "student"))


def test_a_transformer_of_the_paper_has_its_own_name_in_timm(tmp_path: Path) -> None:
    name, options = to_timm.timm_vit(compose(["backbone=vit_small", "backbone.patch_size=8"]).backbone)
    assert (name, options) == ("vit_small_patch8_224", {})
    run = untrained("backbone=vit_tiny", "crops.global_size=32", "crops.local_size=16")
    use = to_timm.write(run, "teacher", tmp_path)
    assert 'timm.create_model("vit_tiny_patch16_224", checkpoint_path="model.safetensors"' in use


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["backbone=resnet18"], "resnet18"),
        (["backbone=timm", "backbone.name=convnext_atto", "backbone.drop_path_rate=0.1"], "convnext_atto"),
        (["backbone=timm", "backbone.name=xcit_nano_12_p16_224"], "xcit_nano_12_p16_224"),
    ],
)
def test_library_backbones_keep_their_own_names(tmp_path: Path, overrides: list[str], name: str) -> None:
    run = untrained(*overrides, "crops.local_size=32")
    to_timm.write(run, "teacher", tmp_path)
    model = timm.create_model(name, checkpoint_path=str(tmp_path / "model.safetensors"), num_classes=0).eval()
    with torch.no_grad():
        expected = run.teacher.backbone(IMAGES)
        torch.testing.assert_close(model(IMAGES), expected, rtol=1e-5, atol=1e-5)


def load_pretrained_weights(
    model: torch.nn.Module, file: Path, checkpoint_key: str
) -> tuple[list[str], list[str]]:
    """Load as the function of this name in the released `utils.py`; return missing and unexpected keys."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        state_dict = torch.load(file, map_location="cpu", weights_only=True)[checkpoint_key]
    state_dict = {key.replace("module.", ""): value for key, value in state_dict.items()}
    state_dict = {key.replace("backbone.", ""): value for key, value in state_dict.items()}
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    return missing, unexpected


def test_the_released_scripts_and_init_from_read_the_checkpoint(patch_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "released"
    assert main([f"run={patch_run}", "format=dino", f"out={out}"]) == 0
    file = out / "checkpoint.pth"
    for network in ("teacher", "student"):
        model = VisionTransformer(
            patch_size=4, embed_dim=64, depth=3, num_heads=2, mlp_ratio=2, image_size=32
        ).eval()
        missing, unexpected = load_pretrained_weights(model, file, network)
        assert missing == []
        assert {key.partition(".")[0] for key in unexpected} == {"head"}
        with torch.no_grad():
            assert torch.equal(model(IMAGES), features(patch_run, network))
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(file, weights_only=True)
    assert content.keys() == {"student", "teacher", "epoch", "args", "dino_loss"}
    assert {"head.last_layer.weight_g", "backbone.cls_token"} <= content["teacher"].keys()
    assert {key.partition(".")[0] for key in content["student"]} == {"module"}
    arguments = content["args"]
    assert (arguments.arch, arguments.patch_size, arguments.out_dim) == ("vit_micro", 4, 64)
    assert (arguments.teacher_temp, arguments.optimizer, arguments.local_crops_number) == (0.02, "adamw", 2)

    still = ("optimizer.lr=0", "optimizer.min_lr=0", "ema.schedule=constant", "ema.momentum=1")
    words = ["experiment=debug", "trainer.max_steps=1", "backbone.stem=patch", f"init_from={file}", *still]
    train(compose(words), tmp_path / "again")
    ours = checkpoint.load(patch_run / "checkpoints" / "last.pt")
    again = checkpoint.load(tmp_path / "again" / "checkpoints" / "last.pt")
    for network in ("student", "teacher"):
        assert all(torch.equal(again[network][key], ours[network][key]) for key in ours[network])


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["backbone=vit_small", "crops.global_size=224"], "eval_knn.py --arch vit_small --patch_size 16"),
        (["backbone=vit_small", "crops.global_size=32"], "VisionTransformer(img_size=[32], patch_size=16"),
        (["backbone=resnet18"], "eval_knn.py --arch resnet18"),
        (["backbone=xcit_small"], "eval_knn.py --arch xcit_small_12_p16 "),
    ],
)
def test_the_card_says_how_the_released_code_builds_the_network(overrides: list[str], found: str) -> None:
    run = untrained("crops.local_size=32", *overrides)
    assert found in to_released.how_to_load(run, "teacher", to_released.released_arch(run))


@pytest.mark.spawn
def test_torch_hub_folders_work_without_this_project(tmp_path: Path) -> None:
    """Loads the folders in one process, to see that they do not share code by accident."""
    names = {
        "dino_vit_micro": [],
        "dino_resnet18": ["backbone=resnet18_cifar"],
        "dino_resnet_micro": ["backbone=resnet_micro"],
    }
    for name, overrides in names.items():
        folder, run = tmp_path / name, untrained(*overrides)
        folder.mkdir()
        use = to_torchhub.write(run, "teacher", folder)
        assert f'torch.hub.load("path/to/this/folder", "{name}", source="local")' in use
        assert len(list(folder.iterdir())) == 3
        with torch.no_grad():
            torch.save({"images": IMAGES, "features": run.teacher.backbone(IMAGES)}, folder / "known")
    code = """if True:
        import importlib.util, sys, torch
        sys.modules["dino_exp"] = None
        for name in sys.argv[1:]:
            known = torch.load(f"{name}/known")
            model = torch.hub.load(name, name, source="local")
            spec = importlib.util.spec_from_file_location("hubconf", f"{name}/hubconf.py")
            sys.path.insert(0, name)
            spec.loader.exec_module(hubconf := importlib.util.module_from_spec(spec))
            offered = [each for each in dir(hubconf) if callable(getattr(hubconf, each)) and each[0] != "_"]
            print(offered == [name], torch.equal(model(known["images"]), known["features"]), model.training)
        """
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == 3 * ["True", "True", "False"], done.stderr


@pytest.mark.parametrize("overrides", [["backbone=resnet18_cifar"], []], ids=["torchvision", "vit"])
def test_onnx_runtime_gives_the_features_for_any_number_of_images(
    tmp_path: Path, overrides: list[str]
) -> None:
    run = untrained(*overrides)
    to_onnx.write(run, "teacher", tmp_path)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        (found,) = session.run(None, {"images": IMAGES[:count].numpy()})
        with torch.no_grad():
            expected = run.teacher.backbone(IMAGES[:count])
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("write", "overrides", "error"),
    [
        (to_timm.write, [], "backbone.stem = conv: timm has no transformer with this stem"),
        (to_timm.write, ["backbone=resnet18_cifar"], "resnet18: timm's model of this name has other weights"),
        (to_released.write, [], "backbone.stem = conv: the released code has no transformer with this stem"),
        (to_released.write, ["backbone=resnet18_cifar"], "the released scripts cannot build this network"),
        (to_timm.write, ["backbone=resnet_micro"], "resnet_micro: "),
        (
            to_released.write,
            ["backbone=timm", "backbone.name=convnext_atto", "crops.local_size=32"],
            "convnext_atto: the released scripts cannot build this network",
        ),
    ],
)
def test_the_error_for_an_unsupported_network_names_formats_that_support_it(
    tmp_path: Path, write: Callable[[Trained, str, Path], object], overrides: list[str], error: str
) -> None:
    with pytest.raises(UserError, match=f"{error}.*; use format=torchhub or format=onnx"):
        write(untrained(*overrides), "teacher", tmp_path)
    assert list(tmp_path.iterdir()) == []


class Branching(torch.nn.Module):
    """Backbone with a branch that depends on its input, which a graph cannot express."""

    feature_dim = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) if x.sum() > 0 else x.amax(dim=(2, 3))


def test_a_network_that_onnx_cannot_express_is_an_error(tmp_path: Path) -> None:
    run = untrained()
    run.teacher.backbone = Branching()
    with pytest.raises(UserError, match=r"torch.onnx cannot express vit_micro \(.+\); use format=torchhub"):
        to_onnx.write(run, "teacher", tmp_path)
