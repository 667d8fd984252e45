"""The W&B file of a complete run, read back with W&B's own tool, has the content of metrics.jsonl."""

from pathlib import Path

import pytest

from dino_exp.config.compose import compose
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training.run import train
from tests.tracker.test_wandb_tracker import only, read_back

pytestmark = pytest.mark.wandb


@pytest.mark.plots
def test_the_wandb_file_has_the_content_of_metrics_jsonl(tmp_path: Path, wandb_home: Path) -> None:
    short = ["experiment=debug", "trainer.max_steps=9", "trainer.log_every=2"]
    cfg = compose([*short, "tracker=wandb", "tracker.mode=offline"])
    train(cfg, tmp_path / "run", group="a-sweep")

    directory = RunDirectory(tmp_path / "run")
    (segment,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    records = read_back(segment)
    run = only(records, "run")
    assert (run["run_id"], run["run_group"]) == (directory.read_status()["tracker_id"], "a-sweep")
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    lines = read_metrics(directory.metrics_file)
    assert [line["step"] for line in lines] == [0, 1, 2, 4, 5, 6, 8, 9]
    for line in lines:
        (mirrored,) = [item for item in items if item["step"] == line["step"] and line.keys() <= item.keys()]
        assert {key: mirrored[key] for key in line} == pytest.approx(line)
    images = {key.removesuffix(".path") for item in items for key in item if key.endswith(".path")}
    assert images == {"crops", "curves", "attention"}
    assert only(records, "exit").get("exit_code", 0) == 0
