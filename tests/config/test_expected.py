"""What an experiment reached: which runs are compared with it, and where they show it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dino_exp.config.compose import check, compose_run
from dino_exp.config.expected import band_at, bands, comparison
from dino_exp.config.identity import run_id
from tests.programs import run_program

EXPERIMENT = """\
# @package _global_
defaults: [debug]
name: tiny
expected:
  experiment: tiny
  knn_top1: [[0.5, {half}], [1, {end}]]
  spread: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of options with the experiment `tiny`, and one that only inherits from it."""
    experiments = tmp_path / "mine" / "experiment"
    experiments.mkdir(parents=True)
    (experiments / "tiny.yaml").write_text(EXPERIMENT.format(half=30, end=40))
    (experiments / "child.yaml").write_text(
        "# @package _global_\ndefaults: [tiny]\nloss:\n  teacher_temp: 0.03\n"
    )
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("words", "compared"),
    [
        ([], True),
        (["trainer.seed=7", "trainer.num_workers=1", "trainer.log_every=3", "name=other"], True),
        (["eval.every_epochs=2"], True),
        (["loss.teacher_temp=0.03"], False),
        (["trainer.max_steps=4"], False),
        (["backbone=vit_tiny"], False),
        (["eval.k=5"], False),
        (["experiment=child"], False),
        (["experiment=child", "loss.teacher_temp=0.02"], True),  # the same configuration again
        (["experiment=debug"], False),
    ],
)
def test_only_the_unchanged_experiment_is_compared(words: list[str], compared: bool, folder: Path) -> None:
    experiment = [] if any(word.startswith("experiment=") for word in words) else ["experiment=tiny"]
    cfg = compose_run([*experiment, *words], str(folder)).cfg
    assert len(bands(cfg.expected)) == 2 * compared


def test_what_is_expected_is_no_part_of_a_run(folder: Path) -> None:
    cfg = compose_run(["experiment=tiny"], str(folder)).cfg
    assert run_id(cfg) == run_id(compose_run(["experiment=debug"]).cfg)


def test_between_two_places_a_line_is_expected() -> None:
    expected = {"experiment": "tiny", "knn_top1": [[0.5, 30], [1, 40]], "spread": 2}
    assert band_at(expected, 0.4) is None
    assert band_at(expected, 0.75) == (0.75, 33, 37)
    assert comparison(expected, 8, 8, 41.9).startswith("k-NN 41.9 % is within the 38.0 to 42.0 %")
    assert "is below the" in comparison(expected, 8, 8, 37.9)
    assert comparison(expected, 6, 8, 38) == (
        "k-NN 38.0 % is above the 33.0 to 37.0 % of experiment=tiny at step 6"
    )
    for damaged in ("text", {"spread": 1}, expected | {"spread": "x"}, expected | {"knn_top1": [[1, "y"]]}):
        assert comparison(damaged, 8, 8, 40) == ""
    assert comparison(expected, 8, 8, None) == comparison({}, 8, 8, 40) == comparison(None, 8, 8, 40) == ""


def test_a_run_and_its_page_say_how_it_compares(folder: Path) -> None:
    words = ["--config-dir", str(folder), "experiment=tiny"]
    done = run_program("train.py", *words, folder=folder)
    assert done.returncode == 0, done.output
    (summary,) = folder.glob("outputs/tiny/*/summary.json")
    knn = json.loads(summary.read_text())["knn_top1"]
    word = "below" if knn < 38 else "above" if knn > 42 else "within"
    said = f"k-NN {knn:.1f} % is {word} the 38.0 to 42.0 % of experiment=tiny at the end"
    assert f"expected {said}" in " ".join(done.stdout.split())

    report = run_program("report.py", str(summary.parent), folder=folder)
    assert report.returncode == 0, report.output
    page = (summary.parent / "report" / "index.html").read_text()
    assert said in page
    assert "Band: what experiment=tiny reached, 38.0 to 42.0 at step 16." in page
    assert '"expected":{"step":[8.0,16.0],"low":[28.0,38.0],"high":[32.0,42.0]}' in page


def test_a_run_of_another_configuration_is_compared_with_nothing(folder: Path) -> None:
    words = ["--config-dir", str(folder), "experiment=tiny", "loss.teacher_temp=0.03"]
    done = run_program("train.py", *words, folder=folder)
    assert done.returncode == 0, done.output
    assert "experiment=tiny" not in done.stdout
    (config,) = folder.glob("outputs/tiny/*/config.yaml")
    assert "  knn_top1: []\n" in config.read_text()


def test_a_wrong_expectation_is_refused(folder: Path) -> None:
    for points in ("[[1,40],[0.5,30]]", "[[0.5]]", "[[0,40]]"):
        (problem,) = check(
            ["--config-dir", str(folder), "experiment=tiny", f"expected.knn_top1={points}"]
        ).errors
        assert problem.startswith("expected.knn_top1 = [[")
        assert "give pairs of a share of the steps" in problem
    (problem,) = check(["--config-dir", str(folder), "experiment=tiny", "expected.spread=-1"]).errors
    assert problem == "expected.spread = -1.0: must be at least 0 and at most 100."
