"""A probe set: labeled images that judge what is learned from images without labels."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dino_exp import cli
from dino_exp.config import data_content
from dino_exp.data import content
from dino_exp.data.packed import PackedSource
from dino_exp.eval import evaluate_command
from dino_exp.runs.run_directory import RunDirectory
from tests.data.sources import load
from tests.data.stored import as_files, as_rows, as_shards, by_class, encoded

CLASSES = ["cat", "dog"]
TRAINING, BANK, QUERIES = encoded(16), encoded(10, seed=1), encoded(8, seed=2)
PROBE = ("data.probe.train=bank", "data.probe.val=queries")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with `flat` images without labels, and labeled `bank` and `queries`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    as_files(tmp_path / "flat", TRAINING, ["all"])
    for image in (tmp_path / "flat" / "all").iterdir():
        image.rename(tmp_path / "flat" / image.name)
    (tmp_path / "flat" / "all").rmdir()
    as_files(tmp_path / "bank", BANK, CLASSES)
    as_files(tmp_path / "queries", QUERIES, CLASSES)
    data_content.forget()
    return tmp_path


def words(*others: str) -> list[str]:
    run = ["experiment=debug", "trainer.batch_size=8", "trainer.max_steps=2", "data=image_folder"]
    return [*run, "data.root=flat", *others]


def the_run() -> RunDirectory:
    (run,) = [path for path in Path("outputs/debug").iterdir() if (path / "config.yaml").exists()]
    return RunDirectory(run)


def refused(capsys: pytest.CaptureFixture[str], *others: str) -> str:
    """Return what a command line that is refused before anything is created says."""
    data_content.forget()
    assert cli.main(words(*others)) == 2
    assert not Path("outputs").exists()
    return " ".join(capsys.readouterr().err.split())


# ---- training ------------------------------------------------------------------------------------------


def test_unlabeled_training_is_judged_by_the_probe_set(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(*PROBE)) == 0
    assert "8 images of 2 classes, by 10 labeled images" in capsys.readouterr().out
    run = the_run()
    summary = run.read_summary()
    assert summary["knn_top1"] is not None
    assert summary["untrained_knn_top1"] is not None
    assert (run.checkpoints / "best.pt").exists()
    assert evaluate_command.main([f"run={run.path}", "eval=knn"]) == 0
    (record,) = json.loads((run.path / "evaluations.json").read_text())
    assert record["data"]["probe"] == {"train": str(here / "bank"), "val": str(here / "queries")}


def test_without_labels_a_run_says_how_to_be_judged(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "k-NN is off. Give some: data.probe.train and data.probe.val" in said


def test_the_probe_set_does_not_change_what_is_learned(here: Path) -> None:
    import torch

    assert cli.main(words("output_root=a")) == 0
    assert cli.main(words("output_root=b", *PROBE)) == 0
    weights = [
        torch.load(next(Path(root).rglob("last.pt")), weights_only=True)["teacher"] for root in ("a", "b")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_evaluate_takes_another_probe_set(here: Path) -> None:
    assert cli.main(words(*PROBE)) == 0
    run = the_run()
    as_shards(here / "shards", by_class(BANK, 2))
    as_rows(by_class(QUERIES, 2), ["0", "1"]).to_parquet(here / "queries.parquet")
    others = ["data.probe.train=shards", "data.probe.val=queries.parquet"]
    assert evaluate_command.main([f"run={run.path}", *others]) == 0
    assert evaluate_command.main([f"run={run.path}"]) == 0
    both = json.loads((run.path / "evaluations.json").read_text())
    assert len(both) == 2
    assert both[0]["figures"] == both[1]["figures"]  # the same images in other files


# ---- identity ------------------------------------------------------------------------------------------


def test_a_run_is_its_probe_set_too_and_goes_on_over_no_other(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words()) == 0
    plain = the_run()
    with np.load(plain.data_file) as arrays:
        assert {name.partition(".")[0] for name in arrays} == {"version", "train"}
    assert cli.main(words("output_root=moved", *PROBE)) == 0
    (judged,) = Path("moved/debug").iterdir()
    assert judged.name != plain.path.name
    assert content.read(RunDirectory(judged).data_file).keys() == {"train", "probe.train", "probe.val"}
    shutil.move("bank", "elsewhere")
    capsys.readouterr()
    assert cli.main(words("output_root=moved", "data.probe.train=elsewhere", PROBE[1])) == 0
    assert "already finished" in capsys.readouterr().out


def test_an_unfinished_run_over_a_changed_probe_set_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(*PROBE)) == 0
    run = the_run()
    run.write_status(state="preempted")
    (here / "queries" / "cat" / "000000.jpg").write_bytes(QUERIES[1])
    data_content.forget()
    assert cli.main(words(*PROBE)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "of the images of data.probe.val: 1 image replaced (cat/000000.jpg)" in said


# ---- one of the two, and what cannot be a probe set ----------------------------------------------------


def test_a_bank_alone_classifies_the_held_out_images(here: Path) -> None:
    splits = load("image_folder", root="flat", val_root="queries", probe={"train": "bank"})
    assert splits.test is not None
    assert splits.test.labels is None  # as the training images
    assert splits.probe is not None
    assert splits.probe.test is not None
    assert splits.probe.train.classes == splits.probe.test.classes == CLASSES
    assert splits.evaluated is splits.probe


def test_queries_alone_are_classified_by_the_training_images_if_these_have_labels(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = load("image_folder", root="bank", val_root=None, probe={"val": "queries"})
    assert splits.evaluated.train is splits.train
    assert set(content.contents_of(splits)) == {"train", "probe.val"}
    said = refused(capsys, "data.probe.val=queries")
    assert "data.probe.val = queries: the images of data.root" in said
    assert "have no labels" in said
    assert "as data.probe.train" in said


def test_packed_runs_pack_each_part_once(here: Path) -> None:
    probe = {"train": "bank", "val": "queries"}
    splits = load("image_folder", root="flat", val_root=None, packed=True, probe=probe)
    assert splits.probe is not None
    assert isinstance(splits.probe.train, PackedSource)
    assert len(list((here / "cache" / "dino_exp").glob("*.pixels"))) == 3
    own = load("image_folder", root="bank", val_root=None, packed=True, probe={"val": "queries"})
    assert own.evaluated.train is own.train


def test_what_cannot_judge_is_refused_before_anything_is_created(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_files(here / "one", BANK, ["cat"])
    as_files(here / "birds", QUERIES, ["crow", "owl"])
    (here / "bands").mkdir()
    for number in range(4):
        (here / "bands" / str(number % 2)).mkdir(exist_ok=True)
        np.save(here / "bands" / str(number % 2) / f"{number}.npy", np.zeros((8, 8, 5), np.uint8))
    mistakes = {
        ("data.probe.train=one", PROBE[1]): r"have no labels, or all the same",
        ("data.probe.train=bank", "data.probe.val=flat"): "these images have fewer than two classes",
        (
            "data.probe.train=bank",
            "data.probe.val=birds",
        ): "class 'crow' (2 such) is not among the 2 classes of data.probe.train",
        ("data.probe.train=bands", PROBE[1]): "bands/0/0.npy: has 5 channels, but data.channels is 3",
        ("data.probe.train=nowhere", PROBE[1]): "data.probe.train = nowhere: no such folder or file.",
        (
            "data.probe.train=bank",
            "data.val_root=null",
        ): "give labeled images of the same classes as data.probe",
        ("data.probe.train=bank",): "there are no held-out images that it could classify",
        ("data.probe.train=''", PROBE[1]): "data.probe.train = '': give images, or null for none.",
        ("data.probe.trian=bank",): "did you mean data.probe.train?",
    }
    for others, message in mistakes.items():
        assert message in refused(capsys, *others)


def test_images_that_are_learned_from_and_classified_are_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("flat/000003.jpg", "queries/cat/again.jpg")
    shutil.copy("bank/dog/000001.jpg", "queries/dog/again.jpg")
    assert cli.main(words(*PROBE)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of the 10 images of data.probe.val are also training images (cat/again.jpg)" in said
    assert "1 of the 10 images of data.probe.val are also images of data.probe.train (dog/again.jpg)" in said


def test_a_bank_may_be_made_of_training_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("flat/000003.jpg", "bank/cat/again.jpg")
    assert cli.main(words(*PROBE)) == 0
    assert "also" not in capsys.readouterr().err


def test_the_parts_of_a_set_in_one_folder_are_told_apart(here: Path) -> None:
    as_shards(here / "shards", by_class(BANK, 2), stem="train")
    as_shards(here / "shards", by_class(QUERIES, 2), stem="val")
    splits = load(
        "image_folder", root="flat", val_root=None, probe={"train": "shards", "val": "shards"}
    ).evaluated
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (10, 8)


def test_gray_training_images_have_a_gray_probe_set(here: Path) -> None:
    probe = {"train": "bank", "val": "queries"}
    splits = load("image_folder", root="flat", val_root=None, channels=1, probe=probe)
    assert splits.evaluated.train.read(0).shape[0] == 1
