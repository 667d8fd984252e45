"""`dino_exp.train` and `dino_exp.sweep`: what Python code gives is trained as the command line's is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import dino_exp
from dino_exp.api.words import grid_words, words_of
from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.data.source import ImageSource, Splits
from dino_exp.errors import UserError
from dino_exp.eval.evaluate_command import main as evaluate
from dino_exp.report.report_command import main as report
from dino_exp.training.run import train as train_run

TINY = {
    "experiment": "debug",
    "trainer": {"batch_size": 16, "max_steps": 2, "checkpoint_every": 1},
    "data.mean": [0.5, 0.5, 0.5],
    "data.std": [0.25, 0.25, 0.25],
    "crops.local_number": 1,
}
Labeled = tuple[np.ndarray, np.ndarray]


def arrays(source: ImageSource) -> Labeled:
    assert source.labels is not None
    images = [source.read(index).permute(1, 2, 0).numpy() for index in range(len(source))]
    return np.stack(images), source.labels


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Labeled, Labeled]:
    """Return small training and held-out images with labels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        small = ["experiment=debug", "data.train_size=64", "data.test_size=32"]
        found: Splits = build(compose(small).data)
        assert found.test is not None
        return arrays(found.train), arrays(found.test)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


class Items(Dataset[Any]):
    """A Dataset of PIL images, which calls `before` with each index that is read."""

    def __init__(self, labeled: Labeled, before: Callable[[int], None] = lambda index: None) -> None:
        self.images, self.labels = labeled
        self.before = before

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.before(index)
        return Image.fromarray(self.images[index]), int(self.labels[index])


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.dropout(self.norm(self.convolution(images)).relu()).mean((2, 3))
        return found


def files(labeled: Labeled, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number:03d}.png" for number in range(len(labeled[0]))]
    for path, image in zip(paths, labeled[0], strict=True):
        Image.fromarray(image).save(path)
    return paths


def teacher(directory: Path) -> dict[str, torch.Tensor]:
    state = torch.load(directory / "checkpoints" / "last.pt", weights_only=True)["teacher"]
    assert isinstance(state, dict)
    return state


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_the_same_images_in_every_form_train_the_same_weights(
    splits: tuple[Labeled, Labeled], folder: Path
) -> None:
    train, test = splits
    parts = [(files(part, folder / name), part[1]) for name, part in zip("ab", splits, strict=True)]
    for name, (paths, labels) in zip("ab", parts, strict=True):
        lines = (f"{path}\t{label:03d}" for path, label in zip(paths, labels, strict=True))
        (folder / f"{name}.txt").write_text("\n".join(lines))
    stored = [f"data.root={folder / 'a.txt'}", f"data.val_root={folder / 'b.txt'}"]
    cfg = compose([*words_of(TINY), "data=image_folder", *stored])
    by_command = train_run(cfg, folder / "by_command")
    top1 = by_command.metrics["knn_top1"]
    for data in (splits, (Items(train), Items(test)), tuple(parts), (folder / "a.txt", folder / "b.txt")):
        run = dino_exp.train(TINY, data=data)
        assert (run.state, run.knn_top1) == ("finished", top1)
        assert_same(teacher(run.directory), teacher(by_command.directory))


def test_a_given_network_is_where_both_begin_and_stays_as_it_is(splits: tuple[Labeled, Labeled]) -> None:
    net = Net().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    run = dino_exp.train(TINY | {"optimizer": {"lr": 0, "min_lr": 0}}, data=splits, backbone=net)
    assert_same(dict(net.state_dict()), before)
    for network in ("student", "teacher"):
        trained = run.backbone(network)
        assert_same(dict(trained.named_parameters()), dict(net.named_parameters()))
    assert int(trained.get_buffer("norm.num_batches_tracked")) > 0  # it was trained in train mode
    features = run.features(splits[1])
    images = torch.from_numpy(splits[1][0]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        assert torch.allclose(features, trained((images - 0.5) / 0.25), atol=1e-5)


def test_a_function_builds_the_network_from_the_seed(splits: tuple[Labeled, Labeled]) -> None:
    one_step = TINY | {"trainer": {"batch_size": 16, "max_steps": 1}}
    runs = dino_exp.sweep(one_step, {"trainer.seed": [0, 1]}, data=splits, backbone=Net)
    weights = [run.backbone().get_parameter("convolution.weight") for run in runs]
    assert not torch.equal(*weights)
    again = dino_exp.train(one_step | {"name": "again"}, data=splits, backbone=Net)
    assert torch.equal(again.backbone().get_parameter("convolution.weight"), weights[0])


def test_the_id_has_the_content_of_what_is_given(splits: tuple[Labeled, Labeled]) -> None:
    (images, labels), test = splits
    changed = images.copy()
    changed[-1, 0, 0, 0] ^= 1
    net, wider = Net(), Net(8)
    names = []
    for data, backbone in (
        (splits, net),
        (((changed, labels), test), net),
        (((images, labels % 2), (test[0], test[1] % 2)), net),
        (splits, wider),
        (splits, Net),
    ):
        names.append(dino_exp.train(TINY, data=data, backbone=backbone).directory.name)
    assert len(set(names)) == len(names)
    assert {name.partition("_")[0] for name in names} == {"Net"}


def test_a_probe_set_judges_images_without_labels(splits: tuple[Labeled, Labeled]) -> None:
    (images, _), held_out = splits
    labeled = dino_exp.train(TINY, data=splits)
    judged = dino_exp.train(TINY, data=images, probe=splits)
    assert judged.knn_top1 == labeled.knn_top1 is not None
    assert_same(teacher(judged.directory), teacher(labeled.directory))
    other = dino_exp.train(TINY, data=images, probe=(splits[0], (held_out[0], held_out[1][::-1])))
    assert len({judged.directory, labeled.directory, other.directory}) == 3
    for probe in (images, (images, held_out)):
        with pytest.raises(UserError, match="probe: give a pair"):
            dino_exp.train(TINY, data=images, probe=probe)


def test_an_interrupted_training_is_resumed_by_the_same_call(splits: tuple[Labeled, Labeled]) -> None:
    settings = TINY | {"trainer": {"batch_size": 16, "max_steps": 4, "num_workers": 0}}
    complete = dino_exp.train(settings | {"name": "complete"}, data=splits)
    read: list[int] = []

    def interrupt(index: int) -> None:
        read.append(index)
        if len(read) == 2 * 5 + 64 + 16 + 3:  # looked at, read for the id, one batch, and within the second
            os.kill(os.getpid(), signal.SIGINT)

    data = (Items(splits[0], interrupt), Items(splits[1]))
    with pytest.raises(KeyboardInterrupt, match="the same call resumes it"):
        dino_exp.train(settings, data=data)
    run = dino_exp.train(settings, data=data)
    assert [line["step"] for line in run.metrics] == [0, 1, 2, 3, 4]
    assert_same(teacher(run.directory), teacher(complete.directory))
    again = len(read)
    assert dino_exp.train(settings, data=splits).directory == run.directory  # shown, and not trained
    assert len(read) == again


def test_items_that_raise_are_skipped_and_named(
    splits: tuple[Labeled, Labeled], capfd: pytest.CaptureFixture[str]
) -> None:
    def torn(index: int) -> None:
        if index in (3, 40):
            raise ValueError("torn")

    data = (Items(splits[0], torn), Items(splits[1]))
    with pytest.raises(UserError, match=r"max_corrupt = 0.01: 2 of 64 .* first is training image 3\b"):
        dino_exp.train(TINY, data=data)
    epoch = {"trainer": {"batch_size": 16, "max_steps": 4, "num_workers": 1}, "data.max_corrupt": 0.05}
    run = dino_exp.train(TINY | epoch, data=data)
    assert run.summary["corrupt_images"] == ["training image 3", "training image 40"]
    assert 'raise ValueError("torn")' in capfd.readouterr().out


def test_other_programs_say_what_they_lack_of_such_a_run(
    splits: tuple[Labeled, Labeled], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_data = dino_exp.train(TINY, data=splits).directory
    of_network = dino_exp.train(TINY, data=splits, backbone=Net()).directory
    capsys.readouterr()
    words = ["tracker=none", "device=cpu"]
    assert evaluate([f"run={of_data}", *words]) == 2
    assert "these images were given from Python" in capsys.readouterr().err
    assert evaluate([f"run={of_network}", *words]) == 2
    assert "this network was given from Python" in capsys.readouterr().err
    for name, part in zip(("train", "val"), splits, strict=True):
        for label in range(10):
            (folder / "stored" / name / str(label)).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(*part, strict=True)):
            Image.fromarray(image).save(folder / "stored" / name / str(label) / f"{number}.png")
    images = ["data=image_folder", f"data.root={folder / 'stored' / 'train'}"]
    assert evaluate([f"run={of_data}", *images, *words]) == 0
    assert report([str(of_network)]) == 0


def test_a_sweep_trains_the_grid_and_outlasts_a_run_that_fails(
    splits: tuple[Labeled, Labeled], folder: Path
) -> None:
    grid = {"loss.teacher_temp": [0.02, 0.04], "trainer.batch_size": [16, 1000]}
    shared = {key: value for key, value in TINY.items() if key != "trainer"} | {"trainer.max_steps": 1}
    sweep = dino_exp.sweep(shared, grid, data=splits)
    assert sweep.directory == Path("outputs/debug_sweep_teacher_temp_batch_size")
    assert [run.state for run in sweep] == ["finished", "failed", "finished", "failed"]
    assert "batch" in sweep[1].message
    rows = sweep.table()
    assert [(row["loss.teacher_temp"], row["trainer.batch_size"]) for row in rows] == [
        (0.02, 16),
        (0.02, 1000),
        (0.04, 16),
        (0.04, 1000),
    ]
    assert rows[0]["knn_top1"] == sweep[0].knn_top1 is not None
    assert {path.name for path in (folder / sweep.directory).iterdir()} == {
        Path(row["directory"]).name for row in rows if row["state"] == "finished"
    }


class Flat(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def unfit(net: nn.Module) -> nn.Module:
    return nn.Sequential(net, nn.Unflatten(1, (4, 4)))


@pytest.mark.parametrize(
    ("overrides", "given", "messages"),
    [
        (["trainer.epoch=3", "loss.teacher_temp=-1"], {}, ["trainer.epochs?\n", "loss.teacher_temp = -1"]),
        (["-m"], {}, ["belongs to the command line"]),
        (["hydra/launcher=slurm"], {}, ["belongs to the command line"]),
        (["data=shapes"], {}, ["data=shapes: data is given as an argument too"]),
        ({"head.out_dim": {1}}, {}, ["head.out_dim = {1}: set"]),
        ([3], {}, ["overrides: 3; write each as text"]),
        ([], {"data": 3}, ["training images: int; give a map-style torch Dataset"]),
        ([], {"data": "/nowhere"}, ["/nowhere"]),
        ([], {"data": np.zeros((8, 3, 32, 32))}, ["float64 values; give the images as uint8"]),
        (["data.channels=4"], {}, ["data.mean", "data.std"]),
        ([], {"backbone": 3}, ["backbone: int; give an nn.Module"]),
        ([], {"backbone": lambda: None}, ["returns NoneType, and not an nn.Module"]),
        ([], {"backbone": Flat()}, ["Flat has no parameters to train"]),
        ([], {"backbone": nn.LazyLinear(3)}, ["lazy parameters"]),
        ([], {"backbone": Net().double()}, ["is torch.float64; give a network in float32"]),
        ([], {"backbone": unfit(Net())}, ["returns (2, 4, 4) for two images"]),
        ([], {"backbone": nn.Sequential(Flat(), nn.Linear(3072, 8))}, ["cannot take images of 16x16 pixels"]),
        (["backbone.patch_size=4"], {"backbone": Net()}, ["backbone.patch_size: no such key"]),
    ],
)
def test_what_cannot_work_is_raised_in_words_before_anything_is_created(
    overrides: Any,
    given: dict[str, Any],
    messages: list[str],
    splits: tuple[Labeled, Labeled],
    folder: Path,
) -> None:
    if isinstance(overrides, list):
        overrides = ["experiment=debug", *overrides]
    with pytest.raises(UserError) as refused:
        dino_exp.train(overrides, **({"data": splits} | given))
    assert [message for message in messages if message not in str(refused.value)] == []
    assert not (folder / "outputs").exists()


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(UserError, match="works in one process"):
        dino_exp.train(TINY, data=np.zeros((64, 32, 32, 3), dtype=np.uint8))


def test_random_numbers_and_threads_are_those_of_the_caller(splits: tuple[Labeled, Labeled]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dino_exp.train(TINY, data=splits)
    assert torch.equal(torch.get_rng_state(), before)


def test_mappings_mean_what_is_typed() -> None:
    written = {
        "name": "my 'run'",
        "loss": {"teacher_temp": 0.04, "sharpening": False},
        "trainer.max_steps": None,
        "trainer.seed": np.int64(3),
        "optimizer.lr": 1e-5,
        "crops.global_scale": (0.4, 1),
        "init_from": Path("/tmp/no weights"),
    }
    assert words_of(written) == [
        r"name='my \'run\''",
        "loss.teacher_temp=0.04",
        "loss.sharpening=false",
        "trainer.max_steps=null",
        "trainer.seed=3",
        "optimizer.lr=1e-05",
        "crops.global_scale=[0.4,1]",
        "init_from='/tmp/no weights'",
    ]
    assert words_of("experiment=debug") == ["experiment=debug"]
    assert grid_words({"a.b": [0.1, "c,d"], "e": range(2), "f": None}) == ["a.b=0.1,'c,d'", "e=0,1", "f=null"]
    with pytest.raises(UserError, match=r"a\.b has no values"):
        grid_words({"a.b": []})


@pytest.mark.spawn
def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, dino_exp; assert not {'torch', 'hydra', 'numpy'} & sys.modules.keys(); "
        "assert callable(dino_exp.train)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
