"""Settings of a search are checked before anything is created; `mistakes.txt` has most messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_exp import cli
from dino_exp.config import launcher_settings as settings_module
from dino_exp.config.compose import check
from tests.data.stored import as_files, encoded

SEARCH = ("-m", "hydra/sweeper=optuna", "experiment=debug")


def test_a_search_needs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_module, "find_spec", lambda name: None)
    assert check([*SEARCH, "trainer.seed=0,1"]).errors == [
        "hydra/sweeper = optuna: Optuna is not installed; pip install 'dino-exp[optuna]'."
    ]
    assert check(["-m", "experiment=debug", "trainer.seed=0,1"]).errors == []


def test_a_search_has_no_runs_of_its_own() -> None:
    spaces = ("loss.teacher_temp=tag(log,interval(0.01,0.09))", "loss.center_momentum=choice(0,0.9,0.99)")
    checked = check([*SEARCH, *spaces, "hydra.sweeper.n_jobs=4", "hydra/launcher=local"])
    assert (checked.errors, checked.search, checked.runs) == ([], "optuna", [])
    assert checked.sweep_dir == "outputs/debug_sweep_teacher_temp_center_momentum"


def test_a_space_from_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n"
        "      loss.teacher_temp: interval(-1,0.2)\n      trainer.seed: 0,1\n"
    )
    command = ["--config-dir", str(tmp_path), *SEARCH, "sweep=mine"]
    assert check(command).errors[0].startswith("loss.teacher_temp = -1.0: must be at least 0")
    narrowed = check([*command, "loss.teacher_temp=interval(0.02,0.2)"])  # what is typed wins
    assert (narrowed.errors, narrowed.sweep_dir) == ([], "outputs/debug_mine")
    fixed = check([*command, "loss.teacher_temp=0.04"])
    assert (fixed.errors, fixed.sweep_dir) == ([], "outputs/debug_mine")


def test_a_search_without_labels_is_refused_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = as_files(tmp_path / "images", encoded(40), ["all"]) / "all"
    command = [*SEARCH, "data=image_folder", f"data.root={flat}", f"output_root={tmp_path}/outputs"]
    command += ["loss.teacher_temp=0.02,0.04", "data.val_root=auto", "trainer.max_steps=1"]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert "compares its runs by knn_top1, which needs labeled images" in said
    assert "data.probe.train=... data.probe.val=..." in said
    assert not (tmp_path / "outputs").exists()
