"""The notebook in `examples/` runs from top to bottom on a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from dino_exp.config.compose import compose
from dino_exp.train.run import train
from tests.programs import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "look_at_a_run.ipynb").read_text("utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_opens_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = ("trainer.max_steps=2", "data.train_size=128", "data.test_size=64")
    train(compose(["experiment=debug", *small]), tmp_path / "outputs" / "debug" / "run")
    plt.switch_backend("agg")
    cells: dict[str, Any] = {}
    for source in CODE:
        exec(compile(source, "look_at_a_run.ipynb", "exec"), cells)
    assert cells["run"].path.name == "run"
    assert cells["metrics"]["step"].tolist() == [0, 1, 2]
    assert tuple(cells["seen"].images.shape) == (6, 3, 32, 32)
    assert tuple(cells["features"].final.shape) == (64, cells["subject"].backbone.feature_dim)
    assert {"top1", "top1_k20"} <= cells["figures"].keys()
    plt.close("all")


def test_the_notebook_is_stored_without_outputs() -> None:
    assert [cell["outputs"] for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"] == [[]] * len(CODE)
