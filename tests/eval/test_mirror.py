"""Figures reach the run's own tracker, under the run's own id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from dino_exp.config.compose import compose
from dino_exp.console import Console
from dino_exp.eval.mirror import mirror
from dino_exp.tracker import NoTracker

RECORD: dict[str, Any] = {
    "evaluation": "attention",
    "weights": {"sha256": "ab" * 32, "step": 30},
    "figures": {"jaccard_mean": 28.5},
    "files": ["evaluations/attention_1/attention.png", "evaluations/attention_1/x.parquet"],
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    seen: list[tuple] = []
    for name in ("start", "log", "image", "finish"):
        monkeypatch.setattr(
            NoTracker, name, lambda self, *args, name=name, **kwargs: seen.append((name, args, kwargs))
        )
    return seen


def run_folder(folder: Path, state: str) -> Path:
    (folder / "evaluations" / "attention_1").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / RECORD["files"][0])
    OmegaConf.save(compose(["experiment=debug"]), folder / "config.yaml", resolve=True)
    (folder / "status.json").write_text(json.dumps({"tracker_id": "kept0000", "state": state}))
    return folder


@pytest.mark.parametrize(("state", "exit_code"), [("finished", 0), ("failed", 1)])
def test_a_runs_figures_join_its_own(tmp_path: Path, calls: list[tuple], state: str, exit_code: int) -> None:
    folder = run_folder(tmp_path / "run", state)
    cfg: Any = OmegaConf.create({"run": str(folder), "tracker": {"_target_": "dino_exp.tracker.NoTracker"}})
    mirror(cfg, folder, [RECORD], Console(quiet=True))
    (_, (info,), _), logged, image, finish = calls
    assert (info.tracker_id, info.resume_step, info.config["name"]) == ("kept0000", 30, "debug")
    assert logged == ("log", ({"eval/attention/jaccard_mean": 28.5}, 30), {})
    assert image[1] == ("eval/attention/attention", folder / RECORD["files"][0], 30)
    assert finish == ("finish", ({},), {"exit_code": exit_code})  # evaluating a failed run makes it no better


def test_weights_have_a_run_of_their_own_that_a_second_evaluation_joins(
    tmp_path: Path, calls: list[tuple]
) -> None:
    cfg: Any = OmegaConf.create({"run": None, "tracker": {"_target_": "dino_exp.tracker.NoTracker"}})
    for _ in range(2):
        mirror(cfg, tmp_path, [RECORD | {"files": []}], Console(quiet=True))
    ids = {args[0].tracker_id for name, args, _ in calls if name == "start"}
    assert ids == {"evalabababababab"}
