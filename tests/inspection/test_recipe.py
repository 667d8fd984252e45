"""Recipes: they compose, fit images and machine, and are compared with a file instead of overwriting it."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dino_exp import installation
from dino_exp.config.compose import check
from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.inspection import recipe
from dino_exp.inspection.measured import Measured
from dino_exp.inspection.open_questions import open_questions
from dino_exp.machine import Hardware
from tests.inspection.measurements import channel, gray_12_bit, photographs, ten_bands, tiny

CPU = Hardware(2)
GPU = Hardware(16, "a GPU", 24 * 1024)
SMALL_GPU = Hardware(8, "a small GPU", 4 * 1024)
MACHINES = {"cpu": CPU, "gpu": GPU}
NUMBERS = count()
Composed = Callable[..., Any]
SETS: dict[str, Callable[[], Measured]] = {
    "photographs": photographs,
    "tiny": tiny,
    "gray, 12 bits": gray_12_bit,
    "ten bands": ten_bands,
    "unlabeled": lambda: photographs(classes=None, held_out=None, images=1_000_000),
    "shards": lambda: photographs(kind="webdataset", place="/data/train-{000..146}.tar", images=300_000),
    "below 16 pixels": lambda: tiny(images=40, place="/my/{odd}'\"#: ${HOME}\nname"),
}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the user's configuration files; this process counts as installed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installation, "CHECKOUT", False)
    return tmp_path / "conf"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for recipes that are composed; opening one takes longer than composing."""
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture
def composed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Composed:
    """Return a function from what was measured to the configuration, which has no errors and warnings."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(installation, "CHECKOUT", False)

    def compose(measured: Measured, hardware: Hardware = CPU) -> Any:
        name = f"recipe{next(NUMBERS)}"
        write(measured, hardware, name)
        checked = check(["--config-dir", str(folder / "conf"), f"experiment={name}"])
        problems = [each for each in checked.errors if "no such folder or file" not in each]
        assert (problems, checked.warnings) == ([], [])
        assert checked.cfg is not None
        assert checked.cfg.name == name
        return checked.cfg

    return compose


def write(measured: Measured, hardware: Hardware = CPU, name: str = "mine") -> str:
    """Write a recipe, or compare; return what is printed."""
    printed = io.StringIO()
    recipe.write(measured, name, Console(file=printed, width=200), hardware)
    return printed.getvalue()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("images", SETS)
def test_every_recipe_composes_without_warnings(composed: Composed, images: str, machine: str) -> None:
    measured = SETS[images]()
    cfg = composed(measured, MACHINES[machine])
    assert (cfg.data.name, cfg.data.root) == (measured.kind, measured.place)
    assert len(cfg.data.mean) == len(cfg.data.std) == cfg.data.channels
    assert measured.images >= 4 * cfg.trainer.batch_size
    assert cfg.crops.global_size <= max(16, measured.shorter_sides[5.0])
    assert cfg.optimizer.warmup_epochs <= 0.1 * cfg.trainer.epochs


def test_few_photographs_on_a_cpu(composed: Composed) -> None:
    cfg = composed(photographs())
    assert (cfg.backbone.name, cfg.crops.global_size, cfg.crops.local_number) == ("resnet_micro", 64, 0)
    assert cfg.data.range is None
    assert list(cfg.data.mean) == [0.5, 0.4, 0.3]
    assert list(cfg.data.std) == [0.2, 0.2, 0.2]
    assert (cfg.trainer.epochs, cfg.trainer.batch_size) == (400, 32)


def test_tiny_images_on_a_cpu_are_trained_as_our_own_experiment_trains_them(composed: Composed) -> None:
    cfg = composed(tiny(10_000))
    ours = check(["experiment=cifar10_folder_resnet", "data.root=."]).cfg
    assert ours is not None
    ours.loss.teacher_temp = ours.loss.warmup_teacher_temp = 0.02
    for group in ("backbone", "head", "crops", "augment", "loss", "ema", "optimizer"):
        assert cfg[group] == ours[group]
    assert (cfg.trainer.epochs, cfg.trainer.batch_size) == (30, 64)


def test_photographs_on_a_gpu_follow_the_paper_as_far_as_their_number_allows(composed: Composed) -> None:
    cfg = composed(photographs(images=1_281_167), GPU)
    paper = check(["experiment=paper_vits16", "data.root=."]).cfg
    assert paper is not None
    for group in ("backbone", "head", "crops", "augment", "loss", "ema", "optimizer"):
        assert cfg[group] == paper[group]
    assert (cfg.trainer.epochs, cfg.trainer.batch_size) == (100, 512)
    assert cfg.trainer.accumulate == 4  # 55 GiB in one part


def test_small_sets_on_a_gpu_have_fewer_prototypes_and_a_faster_teacher(composed: Composed) -> None:
    cfg = composed(tiny(), SMALL_GPU)
    assert (cfg.backbone.name, cfg.backbone.patch_size) == ("vit_tiny", 4)
    assert (cfg.head.out_dim, cfg.loss.teacher_temp, cfg.ema.momentum) == (2048, 0.02, 0.99)
    assert (cfg.crops.global_size, cfg.crops.local_size, cfg.crops.local_number) == (32, 16, 8)
    assert (cfg.trainer.epochs, cfg.trainer.batch_size, cfg.trainer.accumulate) == (200, 128, 1)
    assert list(cfg.augment.blur) == [0, 0, 0]


def test_deep_images_have_a_range_and_statistics_after_it(composed: Composed) -> None:
    cfg = composed(gray_12_bit())
    assert cfg.data.channels == 1
    assert list(cfg.data.range) == [100, 4001]
    assert cfg.data.mean[0] == pytest.approx(0.5, abs=0.01)  # evenly distributed, and no outlier in it
    assert cfg.data.std[0] == pytest.approx(0.289, abs=0.01)


def test_bands_have_a_range_each_and_constant_ones_are_left_out(composed: Composed) -> None:
    cfg = composed(ten_bands())
    assert list(cfg.data.bands) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert cfg.data.channels == 9
    assert cfg.data.range == [[0.01, 1.0 + band] for band in range(9)]
    assert (cfg.crops.global_size, cfg.backbone.name) == (64, "resnet_micro")


@pytest.mark.parametrize(
    ("changed", "channels"),
    [
        (dict(formats={"PNG": 9}, channel_counts={4: 9}), 3),
        (dict(formats={"TIFF": 9}, channel_counts={4: 9}), 4),
        (dict(channel_counts={3: 9}, equal=True), 1),
        (dict(channel_counts={1: 9, 3: 3}), 3),
        (dict(channel_counts={1: 9}), 1),
    ],
)
def test_channels_are_those_that_carry_something(
    composed: Composed, changed: dict[str, Any], channels: int
) -> None:
    equal = changed.pop("equal", False)
    number = next(iter(changed["channel_counts"]))
    means = [100.0 if equal else 100.0 + each for each in range(number)]
    found = tuple(channel(0, 255, (0, 255), mean, 51) for mean in means)
    assert composed(photographs(channels=found, **changed)).data.channels == channels


def test_what_is_not_known_is_said_in_the_file_and_on_the_terminal(conf: Path) -> None:
    printed = write(photographs(classes=None, held_out=None, near_duplicates=[["a", "b", "c"]]))
    text = (conf / "experiment/mine.yaml").read_text("utf-8")
    for part in ("color carries", "after a flip", "fill the image", "2 duplicates", "no labels"):
        assert part in printed
        assert part in text
    assert "dino-train --config-dir conf experiment=mine" in printed


def test_skipped_images_do_not_end_the_run_unless_they_are_many(composed: Composed) -> None:
    some = photographs(unreadable={"cut off": ["x.jpg"] * 10})
    assert composed(some).data.max_corrupt == 0.06
    many = photographs(unreadable={"cut off": ["x.jpg"] * 100})
    assert composed(many).data.max_corrupt == 0.01
    assert any("33% of the inspected images" in each for each in open_questions(many, CPU))


def test_names_of_files_cannot_end_a_comment(composed: Composed) -> None:
    composed(photographs(unreadable={"bad\nname: theirs\x1b[2J": ["x"]}, notes=["a\n\ntracker: none"]))


def test_a_second_inspect_compares_and_leaves_the_file_as_it_is(conf: Path) -> None:
    write(photographs())
    path = conf / "experiment/mine.yaml"
    mine = path.read_text("utf-8").replace("batch_size: 32", "batch_size: 8 # mine\n  seed: 3")
    path.write_text(mine, "utf-8")
    printed = write(photographs(images=10_000))
    assert path.read_text("utf-8") == mine
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "- images: 200, of which 200 were decoded → 10,000, of which 200 were decoded" in lines
    assert any(line.startswith("trainer.batch_size 8 64 ") for line in lines)
    assert any(line.startswith("trainer.epochs 400 30 10,000 images") for line in lines)
    assert "trainer.seed=3" in lines[-2]
    assert not any(line.startswith("data.root") for line in lines)


def test_an_unchanged_set_would_be_written_the_same(conf: Path) -> None:
    place = "/a/long place/" + "with many folders/" * 9
    write(photographs(place=place))
    printed = write(photographs(place=place, decode_milliseconds=3.0))
    assert "The images are as they were" in printed
    assert "values are what would be written now" in printed


def test_a_file_that_is_no_yaml_any_more_is_named_with_its_line(conf: Path) -> None:
    write(photographs())
    path = conf / "experiment/mine.yaml"
    path.write_text(path.read_text("utf-8") + "\tx: 1\n", "utf-8")
    with pytest.raises(UserError, match=r"mine\.yaml, line \d+: a tab"):
        write(photographs())


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "_self_", "null", "5", "ä", "x" * 101, "a.b"])
def test_names_that_cannot_be_typed_are_refused(conf: Path, name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        write(photographs(), name=name)
    assert not conf.exists()


def test_experiments_that_are_ours_or_written_by_hand_are_refused(conf: Path) -> None:
    with pytest.raises(UserError, match=r"demo\.yaml was not written by inspect"):
        write(photographs(), name="demo")
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment/mine.yaml").write_text("defaults: [demo]\n")
    with pytest.raises(UserError, match=r"mine\.yaml was not written by inspect"):
        write(photographs())
    assert [path.name for path in conf.rglob("*.yaml")] == ["mine.yaml"]


def test_a_few_images_are_no_set(conf: Path) -> None:
    with pytest.raises(UserError, match="at least 16 images that were decoded, and 3 were"):
        write(photographs(images=200, decoded=3))
    assert not conf.exists()
