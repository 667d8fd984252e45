"""`evaluate.py` from its command line: what it writes, prints, finds again, and refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from dino_exp.config.compose import compose
from dino_exp.config.compose_evaluation import check
from dino_exp.config.schema import SCHEMAS
from dino_exp.eval import evaluate_command
from dino_exp.eval.evaluate_command import main
from dino_exp.eval.neighbors import NearestNeighbors
from dino_exp.eval.subject import Findings, LabeledData, Subject
from dino_exp.parallel.processes import STOPPING
from dino_exp.training.run import train
from tests.eval.subjects import Runs
from tests.programs import Program, ranks, wait_for_all


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "run"
    train(compose(["experiment=debug", "trainer.max_steps=2", "tracker=none"]), path)
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of its own, and a cache that holds its images but no features."""
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    monkeypatch.chdir(tmp_path)
    return path


def features_of(cache: Path) -> list[Path]:
    return sorted((cache / "dino_exp" / "features").glob("[0-9a-f]*"))


def records(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluations.json").read_text())


def evaluated(run: Path, *words: str) -> list[dict]:
    """Evaluate a run, and return its records."""
    assert main([f"run={run}", *words, "tracker=none"]) == 0
    return records(run)


def test_knn_of_a_run_is_that_of_its_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = evaluated(run, "eval=knn", "knn.k=5,20")
    assert "k: 20" in (run / "config.yaml").read_text()
    assert record["figures"]["top1_k20"] == json.loads((run / "summary.json").read_text())["knn_top1"]
    assert set(record["figures"]) == {"top1_k5", "top5_k5", "top1_k20", "top5_k20"}
    assert record["weights"]["step"] == 2
    assert record["weights"]["network"] == "teacher"
    printed = capsys.readouterr().out
    assert f"top-1, k = 20  {record['figures']['top1_k20']:.1f} %" in printed
    assert "60 tensors matched, 0 missing, 0 unused" in printed


def test_several_evaluations_share_features_that_a_second_command_finds(run: Path, cache: Path) -> None:
    first = evaluated(run, "eval=[knn,linear]", "linear.epochs=2", "linear.blocks=1,2")
    folders = features_of(cache)
    assert len(folders) == 2  # of training and held-out images
    before = [(folder / "values.0").stat().st_mtime_ns for folder in folders]
    second = evaluated(run, "eval=knn")
    assert [(folder / "values.0").stat().st_mtime_ns for folder in features_of(cache)] == before
    assert [record["evaluation"] for record in second] == ["linear", "knn"]  # the newest last, none twice
    assert second[1]["figures"] == first[0]["figures"]
    assert len(evaluated(run, "network=student", "eval=knn")) == 3
    assert len(features_of(cache)) == 4


def test_half_written_features_are_made_again(run: Path, cache: Path) -> None:
    figures = evaluated(run, "eval=knn")[0]["figures"]
    values = features_of(cache)[0] / "values.0"
    whole = values.read_bytes()
    values.write_bytes(whole[:-4])
    assert evaluated(run, "eval=knn")[0]["figures"] == figures
    assert values.read_bytes() == whole
    assert [each for each in values.parent.parent.iterdir() if each.name.startswith(".")] == []


def test_without_a_place_for_a_cache_features_stay_in_memory(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = evaluated(run, "eval=knn")[0]["figures"]
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "dino_exp").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert evaluated(run, "eval=knn")[0]["figures"] == figures


def class_folders(root: Path, classes: int = 2, images: int = 6) -> Path:
    for split in ("train", "val"):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                noise = np.random.default_rng(100 * label + number).integers(
                    0, 100, (40, 48, 3), dtype=np.uint8
                )
                Image.fromarray(noise + np.uint8(150 * label)).save(folder / f"{number}.png")
    return root / "train"


def test_weights_from_elsewhere_on_class_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import timm

    monkeypatch.chdir(tmp_path)
    root = class_folders(tmp_path / "images")
    torch.save({"state_dict": timm.create_model("resnet18", num_classes=7).state_dict()}, tmp_path / "w.pth")
    words = ["weights=w.pth", "backbone=timm", "backbone.name=resnet18", f"data.root={root}", "image_size=32"]
    assert main([*words, "eval=knn", "knn.k=3", "tracker=none"]) == 0
    (folder,) = (tmp_path / "outputs" / "evaluations").iterdir()
    (record,) = records(folder)
    assert record["figures"] == {"top1_k3": 100.0}
    assert record["weights"]["network"] == "network"
    printed = " ".join(capsys.readouterr().out.split())
    assert "0 missing, 2 unused (backbone.fc.weight, backbone.fc.bias)" in printed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval=knn"], "run=outputs/EXPERIMENT/RUN, or weights=FILE"),
        (["run=nowhere"], "run = nowhere: not a run"),
        (["run=RUN", "weights=w.pth"], "both are set"),
        (["run=RUN", "backbone=vit_small"], "backbone: a run has its own"),
        (["run=RUN", "eval=knnn"], "did you mean knn?"),
        (["run=RUN", "knn.kk=3"], "did you mean knn.k?"),
        (["run=RUN", "knn.k=0"], "at least 1"),
        (["run=RUN", "knn.k=[]"], "knn.k = []: give at least one value"),
        (["run=RUN", "eval=linear", "linear.blocks=[]"], "linear.blocks = []"),
        (["run=RUN", "crop_ratio=1e-9"], "at least 0.1"),
        (["run=RUN", "device=cuda"], "device = cuda: this machine has no such device"),
        (["run=RUN", "checkpoint=first"], "last or best"),
        (["run=RUN", "trainer.device=cpu"], "did you mean device?"),
        (["run=RUN", "image_size=30"], "nearest are 28 and 32"),
        (["run=RUN", "-m"], "evaluates one network"),
        (["run=RUN", "loss.teacher_temp=1"], "loss.teacher_temp: no such key"),
        (["run=RUN", "network=a,b"], "network takes one"),
        (["run=RUN", "data=image_folder"], "data.root: not set"),
        (["run=RUN", "data=image_folder", "data.root=/nowhere"], "no such folder"),
        (["weights=nowhere.pth", "data.root=."], "no such file"),
        (["weights=w.pth", "data.root=.", "checkpoint=best"], "checkpoint = best"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_and_nothing_is_made(
    run: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.parent / "w.pth").write_bytes(b"x")
    before = sorted(run.parent.rglob("*"))
    assert main([word.replace("RUN", str(run)) for word in words]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(run.parent.rglob("*")) == before


TWO = ["data.root=two/train", "backbone=vit_micro"]


@pytest.mark.parametrize(
    ("problem", "words", "expected"),
    [
        ("other network", ["data.root=two/train", "backbone=vit_tiny"], "backbone.cls_token"),
        ("truncated", TWO, "cut short"),
        ("attack", TWO, "so it was not loaded"),
        ("one class", ["data.root=one/train", TWO[1]], "no labels, or all the same"),
        ("one image", ["data.root=single/train/class0", TWO[1]], "no held-out images"),
        ("no labels", ["data.root=one/train/class0", "data.val_root=two/val", TWO[1]], "labels"),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(
    problem: str, words: list[str], expected: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, folder = run / "checkpoints" / "last.pt", run.parent
    for name, classes, images in (("one", 1, 6), ("two", 2, 6), ("single", 1, 1)):
        class_folders(folder / name, classes, images)
    if problem == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    elif problem == "attack":
        torch.save({"state_dict": Runs(Path.write_text, folder / "executed", "executed")}, checkpoint)
    before = sorted(folder.rglob("*"))
    assert main([f"weights={checkpoint}", *words, "image_size=32"]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    assert not (folder / "executed").exists()


def test_unreadable_images_are_said_and_too_many_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = class_folders(tmp_path / "images", images=10)
    (root / "class0" / "3.png").write_bytes(b"cut off")
    words = [f"run={run}", "data=image_folder", f"data.root={root}", "knn.k=3", "tracker=none"]
    assert main([*words, "eval=knn,linear"]) == 2
    assert not (run / "evaluations.json").exists()  # refused to the second evaluation too
    assert "knn: data.max_corrupt = 0.01: 1 of 20 images of train cannot be read" in capsys.readouterr().err
    assert main([*words, "data.max_corrupt=0.1"]) == 0
    assert records(run)[0]["notes"] == ["1 of 20 images of train could not be read and were skipped."]


def test_images_that_have_changed_since_the_training_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = class_folders(tmp_path / "images", images=10)
    words = ["data=image_folder", f"data.root={root}", "trainer.max_steps=1", "trainer.batch_size=8"]
    run = tmp_path / "run"
    train(compose(["experiment=debug", "tracker=none", *words]), run)
    key = OmegaConf.load(run / "config.yaml").data_content
    assert evaluated(run, "eval=knn", "knn.k=3")[0]["data_content"] == key
    (root / "class0" / "3.png").unlink()
    capsys.readouterr()
    first, second = evaluated(run, "eval=knn", "knn.k=3")
    assert first["data_content"] == key != second["data_content"]
    said = (
        "warning: the images have changed since the run was trained on them: 1 image removed (class0/3.png)."
    )
    assert said in capsys.readouterr().err
    (run / "data.npz").write_bytes(b"PK damaged")
    assert len(evaluated(run, "eval=knn", "knn.k=3")) == 2
    assert "data.npz: damaged" in capsys.readouterr().err


def test_other_images_become_bytes_as_those_of_the_run(run: Path, tmp_path: Path) -> None:
    own = OmegaConf.load(run / "config.yaml")
    own.data = OmegaConf.merge(SCHEMAS["data"]["image_folder"](root="x", bands=[3, 2, 1], range=[0, "p99"]))
    (run / "config.yaml").write_text(OmegaConf.to_yaml(own))
    words = [f"run={run}", "data=webdataset", f"data.root={tmp_path}"]
    for more, span in (([], [0, "p99"]), (["data.range=[127.5,65407.5]"], [127.5, 65407.5])):
        checked = check([*words, *more])
        assert checked.cfg is not None, checked.problems
        assert (checked.cfg.data.bands, checked.cfg.data.range) == ([3, 2, 1], span)
    checked = check([f"run={run}", "data=cifar10"])
    assert not checked.problems


def test_other_images_are_normalized_as_the_network_is_used_to(run: Path, tmp_path: Path) -> None:
    words = [f"run={run}", "data=image_folder", f"data.root={tmp_path}"]
    cfg = check(words).cfg
    assert cfg is not None
    assert list(cfg.data.mean) == list(OmegaConf.load(run / "config.yaml").data.mean)
    cfg = check([*words, "data.mean=[0.1,0.2,0.3]"]).cfg
    assert cfg is not None
    assert list(cfg.data.mean) == [0.1, 0.2, 0.3]


def test_another_architecture_for_the_same_weights_is_another_record(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = class_folders(tmp_path / "images")
    weights = run / "checkpoints" / "last.pt"
    words = [f"weights={weights}", "backbone=vit_micro", f"data.root={root}", "image_size=32", "knn.k=3"]
    for heads in (2, 4):
        assert main([*words, f"backbone.num_heads={heads}", "tracker=none"]) == 0
    (folder,) = (tmp_path / "outputs" / "evaluations").iterdir()
    assert [record["backbone"]["num_heads"] for record in records(folder)] == [2, 4]


def test_a_place_that_cannot_be_written_is_found_before_the_work(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    root = class_folders(tmp_path / "images")
    words = [f"weights={run / 'checkpoints' / 'last.pt'}", "backbone=vit_micro", f"data.root={root}"]
    assert main([*words, "image_size=32", "output_root=file", "tracker=none"]) == 2
    problem = "file: a part of the path is a file; results are written there; choose another output_root.\n"
    assert capsys.readouterr().err == problem


def test_results_of_a_run_that_cannot_be_written_go_to_output_root(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = evaluate_command.try_writing

    def try_writing(folder: Path) -> None:
        if folder == run:
            raise PermissionError(errno.EACCES, "", str(run))
        really(folder)

    monkeypatch.setattr(evaluate_command, "try_writing", try_writing)
    before = sorted(run.rglob("*"))
    assert main([f"run={run}", "eval=knn", "tracker=none"]) == 0
    assert sorted(run.rglob("*")) == before
    (folder,) = (tmp_path / "outputs" / "evaluations").iterdir()
    assert records(folder)[0]["weights"]["file"] == str(run / "checkpoints" / "last.pt")
    relative = folder.relative_to(tmp_path)
    assert f"run = {run}: {run}: no permission; the results are written to {relative}.\n" in (
        capsys.readouterr().err
    )


def test_a_full_disk_is_called_that(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "", str(path))

    monkeypatch.setattr("dino_exp.eval.records.write_atomically", full)
    assert main([f"run={run}", "eval=knn", "tracker=none"]) == 1
    assert capsys.readouterr().err == f"{run / 'evaluations.json'}: the disk is full.\n"


def test_results_are_not_written_through_a_link(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (run / "evaluations").symlink_to(tmp_path / "mine")
    assert main([f"run={run}", "eval=knn", "tracker=none"]) == 2
    assert f"{run / 'evaluations'}: a link to {tmp_path / 'mine'}" in capsys.readouterr().err


def test_the_same_twice_at_once_leaves_whole_files(run: Path, tmp_path: Path) -> None:
    words = ["evaluate.py", f"run={run}", "eval=embed", "embed.map=none", "tracker=none"]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    both = [Program(*words, folder=tmp_path, environment=cache) for _ in range(2)]
    assert [program.wait() for program in both] == [0, 0]
    (record,) = records(run)
    assert len(record["files"]) == 2
    assert all((run / name).is_file() for name in record["files"])


def test_an_evaluation_that_fails_leaves_the_others(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_exp.errors import UserError

    def fail(self: NearestNeighbors, subject: object, data: object, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "half.txt").write_text("half")
        raise UserError("the disk is full.")

    monkeypatch.setattr(NearestNeighbors, "evaluate", fail)
    assert (
        main([f"run={run}", "eval=[knn,linear]", "linear.epochs=1", "linear.blocks=1", "tracker=none"]) == 2
    )
    assert [record["evaluation"] for record in records(run)] == ["linear"]
    assert "knn: the disk is full." in capsys.readouterr().err
    assert list(run.rglob("half.txt")) == []


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_it_in_words_and_leaves_nothing_half_written(
    run: Path, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, handler = NearestNeighbors.evaluate, signal.getsignal(number)

    def stopping(self: NearestNeighbors, subject: Subject, data: LabeledData, folder: Path) -> Findings:
        (folder / "half.txt").write_text("half")
        os.kill(os.getpid(), number)
        return original(self, subject, data, folder)

    monkeypatch.setattr(NearestNeighbors, "evaluate", stopping)
    before = set(run.rglob("*"))
    assert main([f"run={run}", "eval=[knn,linear]", "tracker=none"]) == 128 + number
    assert capsys.readouterr().err.startswith("warning: stopped; nothing of the evaluation that was running")
    assert set(run.rglob("*")) == before
    assert signal.getsignal(number) == handler


def test_help_names_every_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    from dino_exp.config.evaluation_schema import EVALUATIONS

    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"Keys of {name}" in page for name in EVALUATIONS)


def test_two_processes_find_what_one_does(run: Path, tmp_path: Path) -> None:
    words = ["evaluate.py", f"run={run}", "eval=[knn,linear]", "linear.epochs=2", "tracker=none"]
    one, two = (
        {"XDG_CACHE_HOME": str(tmp_path / name)} for name in ("one", "two")
    )  # features are not shared
    assert Program(*words, folder=tmp_path, environment=one).wait() == 0
    alone = {record["evaluation"]: record["figures"] for record in records(run)}
    (run / "evaluations.json").unlink()
    assert wait_for_all(ranks(*words, folder=tmp_path, environment=two)) == [0, 0]
    assert {record["evaluation"]: record["figures"] for record in records(run)} == alone
    assert alone.keys() == {"knn", "linear"}
