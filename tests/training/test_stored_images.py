"""Runs on images in files: without labels, damaged, of any number of channels, and whose disk goes away."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_exp.config.compose import compose
from dino_exp.config.schema import Config
from dino_exp.config.stored import read_config
from dino_exp.data import loader_processes, storage
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint
from dino_exp.training.attempt import attempt
from dino_exp.training.run import train
from tests.programs import Program
from tests.training.test_run import Views, assert_same_weights, before_step, only_run


def image_folder(folder: Path, classes: int = 2, each: int = 20) -> Path:
    for number in range(classes):
        (folder / f"class{number}").mkdir(parents=True)
        for index in range(each):
            color = (40 * number, 10 * index, 100)
            Image.new("RGB", (40, 36), color).save(folder / f"class{number}" / f"{index}.png")
    return folder


def folder_configuration(root: Path, *overrides: str) -> Config:
    small = ("data=image_folder", f"data.root={root}", "trainer.batch_size=8", "trainer.max_steps=10")
    return compose(["experiment=debug", *small, *overrides])


def test_images_without_labels_train_without_k_nn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = image_folder(tmp_path / "images", classes=1) / "class0"
    train(folder_configuration(flat), tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    assert ["knn_top1" in line for line in read_metrics(directory.metrics_file)] == [False] * 4
    assert directory.read_summary()["knn_top1"] is None
    assert "k-NN is off" in capsys.readouterr().out


def test_corrupt_images_are_skipped_counted_and_too_many_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path / "images")
    (root / "class0" / "3.png").write_bytes(b"not an image")
    train(folder_configuration(root, "data.max_corrupt=0.1"), tmp_path / "run")
    assert RunDirectory(tmp_path / "run").read_summary()["corrupt_images"] == [str(root / "class0" / "3.png")]
    assert sum("3.png" in record.message for record in caplog.records) == 1
    with pytest.raises(UserError, match=r"data\.max_corrupt = 0\.01: 1 of 40 .*3\.png"):
        train(folder_configuration(root), tmp_path / "strict")
    assert RunDirectory(tmp_path / "strict").read_status()["state"] == "failed"


def test_names_that_are_not_unicode_are_shown_stored_and_found_again(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "\udce9t\udce9 [old]")
    corrupt = root / "class0" / "\udce9.png"
    corrupt.write_bytes(b"not an image")
    words = ("data=image_folder", f"data.root='{root}'", "data.max_corrupt=0.1", "data.val_root=null")
    program = Program("train.py", "experiment=debug", *words, "trainer.batch_size=8", folder=tmp_path)
    assert program.wait() == 0, program.output
    assert r"\xe9t\xe9 [old]/class0/\xe9.png" in program.stdout
    directory = only_run(tmp_path)
    assert directory.read_summary()["corrupt_images"] == [str(corrupt)]
    assert read_config(directory).data.root == str(root)
    assert train(read_config(directory), directory.path).message.startswith("already finished")


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    for index in range(16):
        color = np.full((36, 36, channels), index, dtype=np.uint8).squeeze()
        Image.fromarray(color).save(tmp_path / "images" / f"{index}.png")
    stats = [f"data.channels={channels}", f"data.mean={[0.5] * channels}", f"data.std={[0.25] * channels}"]
    cfg = folder_configuration(tmp_path / "images", *stats)
    assert train(cfg, tmp_path / "run").state == "finished"
    assert "saturation, hue, grayscale need RGB and are skipped" in capsys.readouterr().out


def test_a_run_whose_images_go_away_saves_its_steps_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = image_folder(tmp_path / "set", each=40)
    cfg = folder_configuration(root, "trainer.num_workers=1", "trainer.checkpoint_every=100")
    assert train(cfg, tmp_path / "undisturbed").state == "finished"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "GIVE_UP_SECONDS", 0)
        patch.setattr(loader_processes, "PREFETCH", 1)

        def go_away(views: Views) -> Views:
            root.rename(tmp_path / "away")
            return views

        before_step(patch, 4, go_away)
        stopped = attempt(cfg, tmp_path / "run", None)
    assert (stopped.state, stopped.exit_code) == ("failed", 1)
    message = capsys.readouterr().err
    assert "data.root" in message
    assert "Traceback" not in message
    (tmp_path / "away").rename(root)
    directory = RunDirectory(tmp_path / "run")
    saved = checkpoint.load(directory.checkpoints / "last.pt")
    assert saved["step"] >= 4
    assert saved["corrupt"] == []
    assert train(cfg, tmp_path / "run").state == "finished"
    assert_same_weights(directory, RunDirectory(tmp_path / "undisturbed"))
