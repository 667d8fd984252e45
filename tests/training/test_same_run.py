"""A run is its images, wherever they lie: it resumes over the same ones, and over no others."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dino_exp import cli
from dino_exp.config.compose import compose
from dino_exp.config.identity import run_ids
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training import checkpoint
from dino_exp.training.trainer import Trainer
from tests.data.stored import as_files, as_shards, by_class, encoded

RUN = ("experiment=debug", "trainer.batch_size=8", "trainer.epochs=2", "trainer.checkpoint_every=2")
CLASSES = ["cat", "dog"]
IMAGES = encoded(32)


def words(root: str, *overrides: str) -> list[str]:
    return [*RUN, "data=image_folder", f"data.root={root}", "data.val_root=null", *overrides]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with 32 images of two classes in `train`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    as_files(tmp_path / "train", IMAGES, CLASSES)
    return tmp_path


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, *command: str) -> RunDirectory:
    """Run a command, which gets SIGTERM in this step; return the only run of `outputs` that has saved it."""
    original = Trainer.train_step

    def train_step(trainer: Trainer, *args: Any, **how: Any) -> Any:
        result = original(trainer, *args, **how)
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        assert cli.main(list(command)) == 128 + signal.SIGTERM
    (run,) = [run for run in runs() if run.read_status().get("step") == step]
    return run


def runs() -> list[RunDirectory]:
    return [RunDirectory(path.parent) for path in sorted(Path("outputs").glob("*/*/config.yaml"))]


def names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def teacher(run: RunDirectory) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(run.checkpoints / "last.pt")["teacher"]
    return found


# ---- the same images ---------------------------------------------------------------------------------------


def moved(here: Path) -> list[str]:
    (here / "job2").mkdir()
    shutil.move("train", "job2/train")
    return words("job2/train")


def listed(here: Path) -> list[str]:
    files = sorted((here / "train").rglob("*.jpg"))
    (here / "all.txt").write_text("".join(f"{path}\t{path.parent.name}\n" for path in files))
    return words("all.txt")


def in_shards(here: Path) -> list[str]:
    as_shards(here / "shards", by_class(IMAGES, 2))
    shutil.rmtree(here / "train")
    return [*RUN, "data=webdataset", "data.root=shards", "data.val_root=null"]


@pytest.mark.parametrize("elsewhere", [moved, listed, in_shards])
def test_the_same_images_elsewhere_resume_to_the_same_weights(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    elsewhere: Callable[[Path], list[str]],
) -> None:
    assert cli.main(words("train", "output_root=whole")) == 0
    (undisturbed,) = (here / "whole" / "debug").iterdir()
    stopped = stop_at(3, monkeypatch, *words("./train/"))
    capsys.readouterr()
    assert cli.main(elsewhere(here)) == 0
    assert "Resuming from step 3 of 8." in capsys.readouterr().out
    (run,) = runs()
    assert run.path.name == stopped.path.name == undisturbed.name
    theirs = teacher(RunDirectory(undisturbed))
    assert [name for name, value in teacher(run).items() if not torch.equal(value, theirs[name])] == []
    config = OmegaConf.load(run.config_file)
    assert Path(config.data.root).is_absolute()
    assert config.data.root.startswith(str(here))


def test_a_path_is_one_however_it_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root in ("train", "./train/", str(here / "train"), "train/../train"):
        assert cli.main(words(root, "trainer.max_steps=1")) == 0
    said = capsys.readouterr().out
    assert said.count("already finished") == 3
    assert "has the same" not in said
    (here / "train").rename(here / "moved")
    assert cli.main(words("moved", "trainer.max_steps=1")) == 0
    assert f"those of {here / 'train'}; {here / 'moved'} has the same" in capsys.readouterr().out
    assert len(runs()) == 1


@pytest.mark.parametrize("how", ["two projects", "a link"])
def test_two_data_sets_are_two_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    as_files(here / "other" / "train", encoded(32, seed=1), CLASSES)
    for number, folder in enumerate((here, here / "other")):
        root = "train"
        if how == "a link":
            root = str(here / "now")
            (here / "now").unlink(missing_ok=True)
            (here / "now").symlink_to(folder / "train")
        monkeypatch.chdir(folder)
        assert cli.main(words(root, "trainer.max_steps=1", f"output_root={here / 'outputs'}")) == 0
        said = capsys.readouterr().out
        assert "already finished" not in said
        assert ("finished with other images of the same path" in said) == (number == 1 and how == "a link")
    monkeypatch.chdir(here)
    assert len(runs()) == 2


def test_a_tolerance_is_no_part_of_a_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("dog/000009.jpg", "cat/000006.jpg"):  # of the first and the fourth batch
        (here / "train" / name).write_bytes(b"x")
    assert cli.main(words("train", "data.max_corrupt=0.04")) == 2
    assert "Raise data.max_corrupt to resume without them" in capsys.readouterr().err
    (failed,) = runs()
    assert failed.read_status()["state"] == "failed"
    assert cli.main(words("train", "data.max_corrupt=0.1")) == 0
    assert "Resuming" in capsys.readouterr().out
    (run,) = runs()
    assert len(run.read_summary()["corrupt_images"]) == 2


# ---- other images ------------------------------------------------------------------------------------------


def add(root: Path) -> None:
    (root / "cat" / "new.jpg").write_bytes(encoded(1, seed=2)[0])


def remove(root: Path) -> None:
    (root / "dog" / "000001.jpg").unlink()


def replace(root: Path) -> None:
    file = root / "dog" / "000001.jpg"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def relabel(root: Path) -> None:
    (root / "dog").rename(root / "a")


CHANGES: dict[Callable[[Path], None], str] = {
    add: "1 image added (cat/new.jpg)",
    remove: "1 image removed (dog/000001.jpg)",
    replace: "1 image replaced (dog/000001.jpg)",
    relabel: "another order",
}


@pytest.mark.parametrize("change", CHANGES, ids=["added", "removed", "replaced", "relabeled"])
def test_a_stopped_run_is_not_resumed_over_other_images(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
) -> None:
    stopped = stop_at(3, monkeypatch, *words("train"))
    shutil.copytree("train", "before")
    change(here / "train")
    before, status = names(here / "outputs"), stopped.status_file.read_bytes()
    capsys.readouterr()
    for command in (words("train"), words("train", f"hydra.run.dir={stopped.path}")):
        assert cli.main(command) == 2
        said = capsys.readouterr().err
        assert f"{stopped.path}: the images have changed since this run began: " in said
        assert CHANGES[change] in said
        assert "resume=never" in said
        assert f"{stopped.path}/checkpoints/last.pt" in said
        assert said.count("\n") == 1
    assert (names(here / "outputs"), stopped.status_file.read_bytes()) == (before, status)
    shutil.rmtree("train")
    shutil.move("before", "train")
    assert cli.main(words("train")) == 0
    assert "Resuming" in capsys.readouterr().out


def test_other_images_are_trained_anew_if_that_is_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = stop_at(3, monkeypatch, *words("train"))
    add(here / "train")
    started = stop_at(5, monkeypatch, *words("train", "resume=never"))
    assert started.path.name != stopped.path.name
    assert cli.main(words("train")) == 0
    assert "Resuming from step 5" in capsys.readouterr().out
    assert {run.read_status()["state"] for run in runs()} == {"preempted", "finished"}
    weights = f"init_from={stopped.path}/checkpoints/last.pt"
    assert cli.main(words("train", weights)) == 0
    assert len(runs()) == 3


def test_held_out_images_count(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_files(here / "val", encoded(16, seed=3), CLASSES)
    stop_at(3, monkeypatch, *words("train", "data.val_root=auto"))
    add(here / "val")
    assert cli.main(words("train", "data.val_root=auto")) == 2
    (here / "val" / "cat" / "new.jpg").unlink()
    assert cli.main(words("train", "data.val_root=auto")) == 0
    assert "held-out images are also" not in capsys.readouterr().err


def test_held_out_images_that_are_copies_of_training_images_are_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_files(here / "val", [*encoded(12, seed=3), *encoded(4, seed=0)], CLASSES)
    assert cli.main(words("train", "data.val_root=auto", "trainer.max_steps=1")) == 0
    said = capsys.readouterr().err
    assert "data.root = train: 4 of the 16 held-out images are also training images (cat/000012.jpg)" in said


def test_a_sweep_is_refused_before_any_of_its_runs(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *words("train", "trainer.seed=0,1")]
    stopped = stop_at(3, monkeypatch, *sweep)
    add(here / "train")
    before = names(here / "outputs")
    capsys.readouterr()
    assert cli.main(sweep) == 2
    assert capsys.readouterr().err.startswith(f"{stopped.path}: the images have changed")
    assert names(here / "outputs") == before


def test_images_that_change_while_a_sweep_trains_are_noticed_by_its_next_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Trainer.fit

    def fit(trainer: Trainer, *args: Any) -> str:
        add(here / "train")
        return original(trainer, *args)

    monkeypatch.setattr(Trainer, "fit", fit)
    assert cli.main(["-m", *words("train", "trainer.seed=0,1")]) == 1
    assert "the images have changed since this run was submitted" in capsys.readouterr().err
    assert [run.read_status()["state"] for run in runs()] == ["finished"]


def test_a_sweep_over_copies_of_the_same_images_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("train", "copy")
    assert cli.main(["-m", *words("train,copy")]) == 2
    assert "data.root=train and data.root=copy: the same training" in capsys.readouterr().err


def test_the_key_of_the_content_is_not_typed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value in ("null", "abc"):
        assert cli.main(words("train", f"data_content={value}")) == 2
        assert "it is computed from the images" in capsys.readouterr().err


# ---- the record --------------------------------------------------------------------------------------------


def test_a_damaged_record_is_kept_and_written_anew(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = stop_at(3, monkeypatch, *words("train"))
    whole = run.data_file.read_bytes()
    run.data_file.write_bytes(whole[:100])
    add(here / "train")
    assert cli.main(words("train")) == 2  # the configuration still has the key
    (here / "train" / "cat" / "new.jpg").unlink()
    assert cli.main(words("train")) == 0
    assert "It is kept as data.npz.damaged and written anew." in caplog.text
    assert (run.path / "data.npz.damaged").read_bytes() == whole[:100]
    assert run.data_file.stat().st_size == len(whole)


def as_former(run: RunDirectory, root: str, *overrides: str) -> RunDirectory:
    """Make a run one of an earlier version: named by its path as it was typed, without a record."""
    plain: Any = OmegaConf.to_container(compose(words(root, *overrides)), resolve=True)
    directory = RunDirectory(run.path.with_name(run_ids(plain)[-1]))
    run.path.rename(directory.path)
    directory.data_file.unlink()
    del plain["data_content"]
    text = OmegaConf.to_yaml(OmegaConf.create(plain))
    directory.config_file.write_text(text)
    state = checkpoint.load(directory.checkpoints / "last.pt") | {"config": text}
    checkpoint.save(directory.checkpoints / "last.pt", state)
    return directory


def test_a_former_run_is_found_by_its_path_and_records_its_images(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = words("train", "data.max_corrupt=0.02")
    former = as_former(stop_at(3, monkeypatch, *typed), "train", "data.max_corrupt=0.02")
    remove(here / "train")
    for number in range(8):  # a step less per epoch
        (here / "train" / "cat" / f"{2 * number:06d}.jpg").unlink()
    capsys.readouterr()
    assert cli.main(typed) == 2
    assert "this run had 8 steps, and with the images that are there now it has 4" in capsys.readouterr().err
    as_files(here / "train", IMAGES, CLASSES)
    assert cli.main(typed) == 0
    assert "Resuming from step 3" in capsys.readouterr().out
    assert [run.path for run in runs()] == [former.path]
    assert former.data_file.exists()
    assert list(former.path.parent.iterdir()) == [former.path]
    add(here / "train")
    assert cli.main(typed) == 0
    assert "finished with other images of the same path" in capsys.readouterr().out
    assert len(runs()) == 2
