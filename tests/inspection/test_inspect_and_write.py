"""From a folder that nobody has seen to a run: `dino-exp inspect --write`, then the experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino_exp import cli, installation
from dino_exp.inspection.inspect_command import main


def test_a_folder_is_inspected_and_its_recipe_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installation, "CHECKOUT", False)
    rng = np.random.default_rng(0)
    for number in range(48):  # 12 bits in files of 16
        path = tmp_path / "slides" / "train" / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 4096, (20, 20), dtype=np.uint16)).save(path)
    assert main(["inspect", "slides/train", "--write", "slides"]) == 0
    assert "dino-train --config-dir conf experiment=slides" in capsys.readouterr().out
    assert main(["inspect", "slides/train", "--write", "slides"]) == 0
    assert "values are what would be written now" in capsys.readouterr().out
    options = ["tracker=none", "trainer.max_steps=2", "output_root=outputs"]
    assert cli.main(["--config-dir", str(tmp_path / "conf"), "experiment=slides", *options]) == 0
    (config,) = tmp_path.glob("outputs/slides/*/config.yaml")
    assert f"root: {tmp_path}/slides/train" in config.read_text("utf-8")


def test_a_name_that_cannot_be_used_is_refused_before_anything_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["inspect", "/missing", "--write", "demo"]) == 2
    assert "--write demo: " in capsys.readouterr().err
