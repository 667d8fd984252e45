"""`format=transformers`, read by the published layout, and by the real package where it is installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dino_exp.errors import UserError
from dino_exp.eval.features import resize_and_crop
from dino_exp.export import to_transformers
from dino_exp.export.export_command import main
from tests.export.exported import IMAGES, code_in, features, untrained

PATCH = ["backbone.stem=patch"]
GRAY = ["data.channels=1", "data.mean=[0.4]", "data.std=[0.2]"]
FIVE = [
    "data=image_folder",
    "data.root=/",
    "data.channels=5",
    f"data.mean={[0.4] * 5}",
    f"data.std={[0.2] * 5}",
]


def vit_model(folder: Path, images: Tensor) -> Tensor:
    """Return the class tokens of a `ViTModel` in the layout of the models on the hub."""
    config, tensors = (
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors"),
    )

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = tensors.pop(f"{name}.weight"), tensors.pop(f"{name}.bias")
        return F.layer_norm(x, (config["hidden_size"],), weight, bias, config["layer_norm_eps"])

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (config["num_attention_heads"], -1)).transpose(1, 2)

    weight, bias = (
        tensors.pop(f"embeddings.patch_embeddings.projection.{part}") for part in ("weight", "bias")
    )
    patches = F.conv2d(images, weight, bias, stride=config["patch_size"]).flatten(2).transpose(1, 2)
    cls = tensors.pop("embeddings.cls_token").expand(len(images), -1, -1)
    x = torch.cat([cls, patches], 1) + tensors.pop("embeddings.position_embeddings")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        y = norm(x, f"{layer}.layernorm_before")
        query, key, value = (
            heads(linear(y, f"{layer}.attention.attention.{part}")) for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{layer}.attention.output.dense")
        y = F.gelu(linear(norm(x, f"{layer}.layernorm_after"), f"{layer}.intermediate.dense"))
        x = x + linear(y, f"{layer}.output.dense")
    x = norm(x, "layernorm")[:, 0]
    assert tensors == {}
    return x


def test_the_folder_has_the_published_layout(patch_run: Path, tmp_path: Path) -> None:
    for network in ("teacher", "student"):
        out = tmp_path / network
        assert main([f"run={patch_run}", "format=transformers", f"network={network}", f"out={out}"]) == 0
        expected = features(patch_run, network)
        torch.testing.assert_close(vit_model(out, IMAGES), expected, rtol=0, atol=1e-5)
    files = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in out.iterdir()) == files
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["image_size"], config["hidden_act"]) == ("vit", 32, "gelu")
    processor = json.loads((out / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 32, "width": 32}
    assert processor["image_mean"] == [0.5, 0.5, 0.5]
    assert "add_pooling_layer=False" in code_in(out)


@pytest.mark.parametrize(("channels", "overrides"), [(1, GRAY), (5, FIVE)])
def test_other_channels_are_exported(tmp_path: Path, channels: int, overrides: list[str]) -> None:
    run, images = untrained(*PATCH, *overrides), IMAGES[:, [0, 1, 2, 0, 1][:channels]]
    use = to_transformers.write(run, "teacher", tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            vit_model(tmp_path, images), run.teacher.backbone(images), rtol=0, atol=1e-5
        )
    assert (
        ("AutoImageProcessor" in use) == (tmp_path / "preprocessor_config.json").exists() == (channels == 1)
    )


@pytest.mark.parametrize("overrides", [[], GRAY, FIVE], ids=["color", "gray", "five channels"])
def test_transformers_itself_gives_the_features(tmp_path: Path, overrides: list[str]) -> None:
    pytest.importorskip("transformers")  # 72 MB, which `.ci/run` installs
    run = untrained(*PATCH, *overrides)
    channels, data = run.cfg.data.channels, run.cfg.data
    (tmp_path / "README.md").write_text(use := to_transformers.write(run, "teacher", tmp_path))
    assert "features differ from the trained network's by" in use
    stored = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, channels, 48, 40), np.uint8))
    mean, std = (torch.tensor(list(numbers)).view(-1, 1, 1) for numbers in (data.mean, data.std))
    pixels = (resize_and_crop(stored, 32, run.cfg.eval.crop_ratio) / 255 - mean) / std
    names = {"images": list(stored.numpy()) if channels < 5 else pixels}
    with torch.no_grad():
        exec(code_in(tmp_path).replace("path/to/this/folder", str(tmp_path)), names)
        expected = run.teacher.backbone(pixels)
    torch.testing.assert_close(names["features"], expected, rtol=0, atol=1e-4)


def test_features_that_differ_in_transformers_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    settings = to_transformers.model_config
    monkeypatch.setattr(to_transformers, "model_config", lambda run: settings(run) | {"layer_norm_eps": 0.1})
    with pytest.raises(UserError, match=r"in transformers [\d.]+ features differ by .*format=torchhub"):
        to_transformers.write(untrained(*PATCH), "teacher", tmp_path)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ([], "backbone.stem = conv: ViTModel has no transformer with this stem"),
        (["backbone=resnet18_cifar"], "backbone.name = resnet18: ViTModel is this project's ViT alone"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, overrides: list[str], error: str) -> None:
    with pytest.raises(UserError, match=f"{error}; use format=torchhub or format=onnx"):
        to_transformers.write(untrained(*overrides), "teacher", tmp_path)
    assert list(tmp_path.iterdir()) == []
