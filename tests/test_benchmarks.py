"""The benchmarks' plain form of the step trains the same network, and the benchmark commands work."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import batch_rule, boundary, collapse
from benchmarks.plain import UNDO, undone
from benchmarks.released_crops import ReleasedCrops
from benchmarks.step import random_views
from dino_exp.config.compose import compose
from dino_exp.config.identity import run_id
from dino_exp.config.targets import build
from dino_exp.training.trainer import Trainer
from tests.programs import run_program


@pytest.mark.parametrize("names", [*([name] for name in UNDO), list(UNDO)], ids=lambda names: " ".join(names))
def test_undoing_an_optimization_does_not_change_the_weights(names: list[str], tmp_path: Path) -> None:
    results = []
    for undo in ([], names):
        small = ["experiment=debug", f"data.root={tmp_path}", "trainer.batch_size=8"]
        exact = ["trainer.precision=fp32", "optimizer.clip_grad=0.3", "optimizer.freeze_last_layer_epochs=0"]
        cfg = compose([*small, *exact])
        trainer = Trainer(cfg, build(cfg.data), torch.device("cpu"))
        for module in (trainer.student, trainer.teacher, trainer.dino_loss):
            module.double()
        torch.manual_seed(1)
        views = [view.double() for view in random_views(trainer)]
        with undone(trainer, undo):
            losses = [trainer.train_step(views)[0].item() for _ in range(4)]
        results.append((losses, trainer.student.state_dict(), trainer.teacher.state_dict()))
    ours, plain = results
    assert ours[0] == pytest.approx(plain[0], abs=1e-9)
    for one, other in zip(ours[1:], plain[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


def test_the_released_transforms_make_ten_normalized_crops() -> None:
    from PIL import Image

    crops = ReleasedCrops()(Image.new("RGB", (120, 100), (255, 0, 0)))
    assert [crop.shape[-1] for crop in crops] == [224] * 2 + [96] * 8
    assert max(crop.max() for crop in crops) == pytest.approx((1 - 0.485) / 0.229, abs=0.02)


@pytest.mark.parametrize(
    ("words", "file", "rows"),
    [
        (["benchmarks.loss", "--batch", "2", "--crops", "3", "--repeats", "1"], "loss", 4),
        (["benchmarks.scale", "index", "--largest", "4"], "scale_index", 2),
        (
            ["benchmarks.evaluation", "knn", "--queries", "9", "--keys", "300", "--dim", "4"],
            "evaluation_knn",
            2,
        ),
        (
            ["benchmarks.evaluation", "linear", "--images", "99", "--dim", "4", "--epochs", "1"],
            "evaluation_linear",
            3,
        ),
    ],
)
def test_a_benchmark_writes_what_it_prints(words: list[str], file: str, rows: int, tmp_path: Path) -> None:
    done = run_program("-m", *words, folder=tmp_path)
    assert done.returncode == 0, done.output
    written = json.loads((tmp_path / "outputs" / "benchmarks" / f"{file}.json").read_text())
    assert len(written["rows"]) == rows
    assert written["title"] in done.stdout
    assert torch.__version__.startswith(written["environment"]["torch"])


def test_the_runs_of_the_collapse_benchmark_can_be_composed(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    runs = [compose(collapse.drawn(number, tmp_path)) for number in range(0, collapse.RUNS, 4)]
    assert len({run_id(cfg) for cfg in runs}) == len(runs) == 18
    assert {cfg.data.name for cfg in runs} == {"shapes", "fashion_mnist", "image_folder"}
    assert {cfg.backbone.name for cfg in runs} == {"vit_micro", "resnet10t"}
    first = collapse.FIRST_LONG
    long = [compose(collapse.drawn(first + at, tmp_path)) for at in range(len(collapse.LONG_RUNS))]
    assert len({run_id(cfg) for cfg in long}) == len(long) == 20
    assert {cfg.data.name for cfg in long} == {"shapes", "fashion_mnist", "image_folder"}


@pytest.mark.parametrize(
    ("word", "first_alarm", "final", "wrong"),
    [
        ("learned", None, "healthy", False),
        ("learned", None, "slow", False),
        ("learned", 0.2, "healthy", True),
        ("collapsed", 0.2, "collapsed-one-hot", False),
        ("collapsed", 0.2, "healthy", True),
        ("diverged", None, "diverged", False),
        ("unclear", 0.5, "collapsed-uniform", False),
    ],
)
def test_an_alarm_in_a_run_that_learned_is_wrong_and_so_is_a_missed_collapse(
    word: str, first_alarm: float | None, final: str, wrong: bool
) -> None:
    assert collapse.is_wrong({"word": word, "first_alarm": first_alarm, "final": final}) is wrong


def test_a_search_for_a_boundary_beats_random_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(boundary, "NOISES", (0.01,))
    monkeypatch.setattr(boundary, "TRUTHS", {"curved": boundary.TRUTHS["curved"]})
    boundary.main(["synthetic", "--repeats", "2"])
    written = json.loads((tmp_path / "outputs" / "benchmarks" / "boundary.json").read_text())
    wrong = dict.fromkeys(("search", "random", "grid 10 x 10", "grid 5 x 4"), 0.0)
    for row in written:
        wrong[row["method"]] += row["wrong"] / 2
    assert wrong["search"] < 0.06 < wrong["random"]


def test_maps_with_and_without_a_reference_batch_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(batch_rule, "BATCHES", (32, 128))
    monkeypatch.setattr(batch_rule, "TEMPERATURES", (0.02, 0.1))
    monkeypatch.setattr(batch_rule, "MOMENTA", (0.5,))
    runs = {cell: batch_rule.wanted(cell) for cell in batch_rule.cells()}
    assert len({run.name for run in runs.values()}) == len(runs) == 6
    for cell, run in runs.items():
        assert run.cfg.trainer.reference_batch == (32 if cell.converted else None)
        if cell.teacher_temp == 0.1 and cell.batch == 128 and not cell.converted:
            continue  # has not ended
        folder = tmp_path / batch_rule.FOLDER / run.name
        folder.mkdir(parents=True)
        collapsed = cell.batch == 128 and not cell.converted
        knn = 20.0 if collapsed else 60.0
        verdict = "collapsed-uniform" if collapsed else "healthy"
        (folder / "summary.json").write_text(json.dumps({"verdict": verdict, "knn_top1": knn}))
        lines = [{"step": step, "images": step * cell.batch, "knn_top1": knn} for step in (0, 10)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch_rule.main(["figure"])
    out = tmp_path / "outputs" / "benchmarks"
    rows = {row["reference_batch"]: row for row in json.loads((out / "batch_rule.json").read_text())}
    assert (rows[False]["places"], rows[False]["changed"], rows[False]["knn_difference"]) == (1, 1, 40)
    assert (rows[True]["places"], rows[True]["changed"], rows[True]["knn_difference"]) == (2, 0, 0)
    assert (out / "batch_rule.png").stat().st_size > 10_000
