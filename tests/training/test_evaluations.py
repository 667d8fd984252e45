"""`eval=[knn,linear,attention]` during training, by the classes of `evaluate.py`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dino_exp.config.compose import compose
from dino_exp.errors import UserError
from dino_exp.eval.evaluate_command import main as evaluate
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint
from dino_exp.training.run import train
from tests.programs import Program, ranks, wait_for_all
from tests.training.test_run import SMALL, only_run, start

LINEAR = ("eval.linear.epochs=1", "eval.linear.blocks=[1]", "eval.linear.lrs=[0.1,0.5]")


def test_several_evaluations_run_during_training_as_evaluate_py_runs_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = start(tmp_path, "eval=[knn_small,linear,attention]", *LINEAR)
    assert program.wait() == 0, program.output
    directory = only_run(tmp_path)
    lines, summary = read_metrics(directory.metrics_file), directory.read_summary()
    for name in ("knn_top1", "linear/top1", "linear/val_top1", "attention/jaccard_mean"):
        assert [line["step"] for line in lines if name in line] == [0, 8, 16]
        assert summary["final"][name] == lines[-1][name]
    assert "student_knn_top1" in lines[-1]
    for name in ("knn_top1", "linear/top1", "attention/jaccard_mean"):
        assert (summary[name], summary[f"untrained_{name}"]) == (lines[-1][name], lines[0][name])
    assert summary["best_knn_top1"] == max(line["knn_top1"] for line in lines if line.get("student_knn_top1"))
    assert "best_linear/top1" not in summary
    best = checkpoint.load(directory.checkpoints / "best.pt")
    assert best["best_knn"] == summary["best_knn_top1"]
    assert best["best_figure"] == {"knn_top1": summary["best_knn_top1"]}
    assert (directory.plots / "eval" / "attention" / "attention.png").is_file()
    for text in ("linear/top1 of the untrained network", "linear/top1, untrained → now"):
        assert text in program.stdout

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    same = [word.removeprefix("eval.") for word in LINEAR]
    command = [f"run={directory.path}", "eval=[knn,linear,attention]", "knn.k=20", *same, "tracker=none"]
    assert evaluate(command) == 0, capsys.readouterr().err
    records = json.loads((directory.path / "evaluations.json").read_text())
    figures = {record["evaluation"]: record["figures"] for record in records}
    assert figures["knn"]["top1_k20"] == summary["knn_top1"]
    for name in ("linear", "attention"):
        in_training = {key: value for key, value in summary["final"].items() if key.startswith(f"{name}/")}
        assert {f"{name}/{key}": value for key, value in figures[name].items()} == pytest.approx(in_training)


def test_evaluations_leave_the_training_alone_and_the_first_one_chooses_the_best(tmp_path: Path) -> None:
    for name, chosen in (("alone", "eval.k=null"), ("evaluated", "eval=[attention,linear]")):
        words = [*SMALL, "backbone.drop_path_rate=0.2", chosen, *(LINEAR if name == "evaluated" else ())]
        assert train(compose([*words, "eval.every_epochs=1"]), tmp_path / name).state == "finished"
    alone, evaluated = (RunDirectory(tmp_path / name) for name in ("alone", "evaluated"))
    states = [checkpoint.load(each.checkpoints / "last.pt") for each in (alone, evaluated)]
    for part in ("student", "teacher"):
        assert all(torch.equal(states[0][part][name], value) for name, value in states[1][part].items())

    assert not (alone.checkpoints / "best.pt").exists()
    best = checkpoint.load(evaluated.checkpoints / "best.pt")
    summary, lines = evaluated.read_summary(), read_metrics(evaluated.metrics_file)
    figures = {line["step"]: line["linear/top1"] for line in lines[1:] if "linear/top1" in line}
    assert summary["best_linear/top1"] == max(figures.values())
    assert figures[best["step"]] == max(figures.values())
    assert (summary["knn_top1"], summary["best_knn_top1"], best["best_knn"]) == (None, None, -1.0)
    assert summary["untrained_linear/top1"] == lines[0]["linear/top1"]
    assert not any("knn_top1" in line for line in lines)


def test_an_evaluation_that_cannot_work_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval = linear: linear\.val_share = 0: nothing would choose"):
        train(compose([*SMALL, "eval=[knn_small,linear]", "eval.linear.val_share=0"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    words = ["train.py", *SMALL, "eval=[knn_small,linear,low_shot]", *LINEAR, "trainer.max_steps=1"]
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        if name == "one":
            assert Program(*words, folder=tmp_path / name, environment=cache).wait() == 0
        else:
            assert wait_for_all(ranks(*words, folder=tmp_path / name, environment=cache)) == [0, 0]
        found.append(only_run(tmp_path / name))
    one, two = (read_metrics(each.metrics_file)[0] for each in found)
    assert one == two
    assert {"knn_top1", "linear/top1", "low_shot/top1_share0.1"} <= one.keys()
    pixels = [each.read_summary()["raw_pixels_knn_top1"] for each in found]
    assert pixels[0] == pixels[1]
