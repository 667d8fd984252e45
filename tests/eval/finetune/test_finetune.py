"""Fine-tuning tells dark from bright, does not change the subject, and is the same in two processes."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from dino_exp.config.evaluation_schema import FinetuneConfig
from dino_exp.data.source import ArraySource, CorruptImageError, Shrink, Splits
from dino_exp.errors import UserError
from dino_exp.eval.features import evaluating
from dino_exp.eval.finetune.finetuning import Finetune
from dino_exp.eval.finetune.layer_decay import has_layers, layered_groups
from dino_exp.eval.subject import Findings, Subject
from dino_exp.weights.read_weights import read_weights
from tests.eval.subjects import ConvNet, GivenData, dark_and_bright, images, subject, tiny_vit
from tests.programs import in_two_processes

SIZE = 16


def finetune(**changes: Any) -> Finetune:
    tiny: dict[str, Any] = dict(epochs=3, batch_size=8, lr=0.03, warmup_epochs=1.0, crop_scale=[0.5, 1.0])
    return Finetune(FinetuneConfig(**tiny | changes))


TRAIN, TEST = dark_and_bright(64), dark_and_bright(40, seed=1)
DATA = GivenData(Splits(TRAIN, TEST))


def run(evaluation: Finetune, folder: Path, of: Subject | None = None, data: GivenData = DATA) -> Findings:
    of = of or subject(tiny_vit(image_size=SIZE), image_size=SIZE)
    evaluation.check(of, data)
    return evaluation.evaluate(of, data, folder)


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "finetuned.pt", weights_only=True)["state_dict"]


def test_fine_tuning_learns_and_writes_the_network(tmp_path: Path) -> None:
    of = subject(tiny_vit(image_size=SIZE), image_size=SIZE)
    before = {name: value.clone() for name, value in of.backbone.state_dict().items()}
    found = run(finetune(), tmp_path / "new", of)
    assert list(found.figures) == ["top1"]
    assert found.figures["top1"] > 90
    assert found.notes == []
    counts = {"epochs": 3, "images": 64, "held_out_images": 40, "classes": 2}
    assert 0.19 < found.details.pop("training_loss") < 0.69  # at best, label smoothing's entropy
    assert found.details == counts

    assert all(torch.equal(value, before[name]) for name, value in of.backbone.state_dict().items())
    assert not any(parameter.requires_grad for parameter in of.backbone.parameters())
    assert not any(module.training for module in of.backbone.modules())

    (file,) = found.files
    content = torch.load(file, weights_only=True)
    assert content["classes"] == ["dark", "bright"]
    assert content["settings"]["lr"] == 0.03
    assert content["settings"]["mean"] == [0.5] * 3
    network = tiny_vit(seed=5, image_size=SIZE)
    # as evaluate.py and train.py read files
    weights = content["state_dict"] | read_weights(file, network.state_dict()).teacher
    classifier = nn.Linear(16, 2)
    for name, part in (("backbone.", network), ("classifier.", classifier)):
        of_part = {key.removeprefix(name): value for key, value in weights.items() if name in key}
        part.load_state_dict(of_part)
    with evaluating(network):
        predicted = classifier(network(of.normalized(TEST.images))).argmax(1)
    assert 100 * (predicted.numpy() == TEST.labels).mean() == pytest.approx(found.figures["top1"])


def test_results_depend_on_the_seed_and_not_on_the_workers(tmp_path: Path) -> None:
    of = subject(tiny_vit(image_size=SIZE, drop_path_rate=0.3), image_size=SIZE)
    for name, seed, workers in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0)):
        run(finetune(epochs=1), tmp_path / name, dataclasses.replace(of, seed=seed, workers=workers))
    first, again, other = (trained(tmp_path / name) for name in "abc")
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_learning_rates_decrease_from_head_to_patches() -> None:
    head = nn.Linear(16, 2)
    ours = tiny_vit(image_size=SIZE)
    library = timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=12, num_classes=0, img_size=32)
    for backbone in (ours, library):
        names = {parameter: name for name, parameter in backbone.named_parameters()}
        names |= {parameter: f"head.{name}" for name, parameter in head.named_parameters()}
        groups = layered_groups(backbone, head, layer_decay=0.5, weight_decay=0.05)
        found = {
            names[parameter]: (group["lr_factor"], group["weight_decay"])
            for group in groups
            for parameter in group["params"]
        }
        assert sum(len(group["params"]) for group in groups) == len(found) == len(names)
        for name, factor, decay in (
            ("cls_token", 1 / 16, 0.05),
            ("pos_embed", 1 / 16, 0.05),
            ("patch_embed.proj.weight", 1 / 16, 0.05),
            ("patch_embed.proj.bias", 1 / 16, 0.0),
            ("blocks.0.attn.qkv.weight", 1 / 8, 0.05),
            ("blocks.1.mlp.fc1.bias", 1 / 4, 0.0),
            ("blocks.2.norm1.weight", 1 / 2, 0.0),
            ("norm.weight", 1, 0.0),
            ("head.weight", 1, 0.05),
            ("head.bias", 1, 0.0),
        ):
            assert found[name] == (factor, decay), name
    convnet = timm.create_model("efficientnet_lite0", num_classes=0)
    assert not has_layers(convnet)
    groups = layered_groups(convnet, head, layer_decay=0.5, weight_decay=0.05)
    assert {group["lr_factor"] for group in groups} == {1}


def test_training_uses_the_learning_rates_of_the_layers(tmp_path: Path) -> None:
    of = subject(tiny_vit(image_size=SIZE), image_size=SIZE)
    # One step of AdamW moves a value by its learning rate, lr times batch / 256, whatever the gradient.
    run(finetune(epochs=1, batch_size=64, warmup_epochs=0, lr=0.4, weight_decay=0.0), tmp_path, of)
    after = trained(tmp_path)
    for name, factor in (("norm.bias", 1), ("blocks.2.mlp.fc2.bias", 0.75), ("cls_token", 0.75**4)):
        moved = (after[f"backbone.{name}"] - of.backbone.state_dict()[name]).abs()
        assert moved.median().item() == pytest.approx(0.1 * factor, rel=1e-2), name


def convnet() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(8, nn.ReLU(), stride=2)


def test_a_convnet_with_batch_norm_many_classes_and_unreadable_images(tmp_path: Path) -> None:
    class Torn(ArraySource):
        def read(self, index: int, shrink: Shrink | None = None) -> torch.Tensor:
            if index in (3, 20):
                raise CorruptImageError(self.name(index), "torn")
            return super().read(index)

    def torn(number: int) -> Torn:
        source = images([each % 6 for each in range(number)], size=SIZE)
        return Torn("torn", source.images, source.labels, source.classes, 3)

    of = subject(convnet(), image_size=SIZE)
    found = run(finetune(epochs=2), tmp_path, of, GivenData(Splits(torn(24), torn(12))))
    assert list(found.figures) == ["top1", "top5"]
    assert 0 <= found.figures["top1"] <= found.figures["top5"] < 100  # of noise
    assert (found.details["images"], found.details["held_out_images"]) == (22, 11)
    assert [note.partition(":")[0] for note in found.notes] == [
        "All layers had the same learning rate",
        "2 training images could not be read.",
        "1 held-out images could not be read.",
    ]
    assert of.backbone.get_buffer("1.num_batches_tracked") == 0
    assert trained(tmp_path)["backbone.1.num_batches_tracked"] == 6


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, half: torch.dtype) -> None:
    of = dataclasses.replace(subject(tiny_vit(image_size=SIZE), image_size=SIZE), autocast_type=half)
    assert run(finetune(), tmp_path, of).figures["top1"] > 90
    assert trained(tmp_path)["classifier.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 65}, r"finetune\.batch_size = 65: there are only 64 training images.*at most 64"),
        (
            {"warmup_epochs": 3.5},
            r"finetune\.warmup_epochs = 3\.5: more than finetune\.epochs = 3; use at most 3",
        ),
        ({"crop_scale": [1.0, 0.2]}, r"finetune\.crop_scale = \[1, 0\.2\]: .* use \[0\.2, 1\]"),
        ({"lr": 1e30}, r"finetune\.lr = 1e\+30: the loss became nan in epoch 1 of 3; try 3e\+29"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(finetune(**changes), tmp_path)
    assert not (tmp_path / "finetuned.pt").exists()


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    unlabeled = ArraySource("plain", TRAIN.images, None, None, 3)
    with pytest.raises(UserError, match="have no labels"):
        run(finetune(), tmp_path, data=GivenData(Splits(unlabeled, TEST)))


def with_batch_norm() -> Subject:
    return subject(tiny_vit(image_size=SIZE, depth=2, stem="conv"), image_size=SIZE)


SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.01}


def worker(rank: int, folder: str) -> None:
    with pytest.raises(UserError, match=r"= 15: not a multiple of the 2 processes; nearest are 14"):
        finetune(batch_size=15).check(with_batch_norm(), DATA)
    found = run(finetune(**SHORT), Path(folder), with_batch_norm())
    assert len(found.files) == (rank == 0)
    torch.save((found.figures, found.details), f"{folder}/{rank}.pt")


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    in_two_processes(worker, str(tmp_path))
    alone = run(finetune(**SHORT), tmp_path / "alone", with_batch_norm())
    for rank in range(2):
        figures, details = torch.load(tmp_path / f"{rank}.pt")
        assert figures == alone.figures
        assert details == alone.details | {
            "training_loss": pytest.approx(alone.details["training_loss"], rel=1e-4)
        }
    torch.testing.assert_close(trained(tmp_path), trained(tmp_path / "alone"), rtol=1e-3, atol=1e-4)
