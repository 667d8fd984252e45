"""The notebooks in `examples/` run from top to bottom, on a finished run and on small data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from dino_exp.config.compose import compose
from dino_exp.training.run import train
from tests.programs import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code(notebook: str) -> list[str]:
    """Return the cells of code of a notebook in `examples/`."""
    cells = json.loads((ROOT / "examples" / notebook).read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the variables of a notebook that is run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plt.switch_backend("agg")
    return {"__name__": "__main__"}


def test_the_notebook_opens_a_run(cells: dict[str, Any], tmp_path: Path) -> None:
    small = ("trainer.max_steps=2", "data.train_size=128", "data.test_size=64")
    train(compose(["experiment=debug", *small]), tmp_path / "outputs" / "debug" / "run")
    for source in code("look_at_a_run.ipynb"):
        exec(compile(source, "look_at_a_run.ipynb", "exec"), cells)
    assert cells["run"].path.name == "run"
    assert cells["metrics"]["step"].tolist() == [0, 1, 2]
    assert tuple(cells["seen"].images.shape) == (6, 3, 32, 32)
    assert tuple(cells["features"].final.shape) == (64, cells["subject"].backbone.feature_dim)
    assert {"top1", "top1_k20"} <= cells["figures"].keys()
    plt.close("all")


def test_the_notebook_trains_a_dataset_and_a_network(cells: dict[str, Any], tmp_path: Path) -> None:
    for source in code("train_your_own_data.ipynb"):
        small = source.replace("IMAGES, EPOCHS = 2048, 9", "IMAGES, EPOCHS = 64, 1")
        exec(compile(small, "train_your_own_data.ipynb", "exec"), cells)
    assert cells["metrics"]["step"].tolist() == [0, 1, 2]
    assert len(cells["held_out"]) == len(cells["features"]) == 16
    assert (cells["run"].directory / "report" / "index.html").exists()
    assert [row["loss.teacher_temp"] for row in cells["sweep"].table()] == [0.02, 0.04]
    plt.close("all")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_the_notebooks_are_stored_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    stored = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    assert stored == [[]] * len(code(notebook.name))
