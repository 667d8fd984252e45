"""The same images give the same training, however they are stored."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dino_exp.config.compose import compose
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint
from dino_exp.training.run import train
from tests.data.stored import as_files, as_rows, as_shards, by_class, encoded

CLASSES = ["0", "1", "2"]


SHORT = ("experiment=debug", "trainer.batch_size=8", "trainer.max_steps=4", "tracker=none")


def store(folder: Path) -> None:
    images, held_out = encoded(30), encoded(9, seed=1)
    as_files(folder / "files" / "train", images, CLASSES)
    as_files(folder / "files" / "val", held_out, CLASSES)
    as_shards(folder / "shards", by_class(images, 3))
    as_shards(folder / "shards", by_class(held_out, 3), stem="val")
    rows, others = (as_rows(by_class(part, 3), CLASSES) for part in (images, held_out))
    (folder / "parquet" / "data").mkdir(parents=True)
    rows.to_parquet(folder / "parquet" / "data" / "train-00000-of-00001.parquet")
    others.to_parquet(folder / "parquet" / "data" / "test-00000-of-00001.parquet")
    rows.save_to_disk(folder / "saved" / "train")
    others.save_to_disk(folder / "saved" / "test")


def losses_and_weights(directory: Path) -> tuple[list[tuple[Any, Any]], dict[str, torch.Tensor]]:
    run = RunDirectory(directory)
    lines = [(line.get("loss"), line.get("knn_top1")) for line in read_metrics(run.metrics_file)]
    return lines, checkpoint.load(run.checkpoints / "last.pt")["student"]


@pytest.mark.usefixtures("cache")
def test_every_kind_of_storage_gives_the_same_losses_and_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Loader processes take threads from training, and sums over fewer threads are rounded differently.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    store(tmp_path)
    two = "trainer.num_workers=2"
    kinds = {
        "files": ["data=image_folder", f"data.root={tmp_path}/files/train"],
        "shards": ["data=webdataset", f"data.root='{tmp_path}/shards/train-{{000000..000004}}.tar'"],
        "parquet": ["data=huggingface", f"data.root={tmp_path}/parquet", two],
        "saved": ["data=huggingface", f"data.root={tmp_path}/saved/train"],
        "packed files": ["data=image_folder", f"data.root={tmp_path}/files/train", "data.packed=true"],
        "packed shards": ["data=webdataset", f"data.root={tmp_path}/shards", "data.packed=true", two],
        "packed rows": ["data=huggingface", f"data.root={tmp_path}/saved/train", "data.packed=true"],
    }
    results = {}
    for name, overrides in kinds.items():
        assert train(compose([*SHORT, *overrides]), tmp_path / "runs" / name).state == "finished"
        results[name] = losses_and_weights(tmp_path / "runs" / name)
    expected, weights = results["files"]
    assert len(expected) == 5
    assert expected[-1][1] is not None
    for name, (lines, state) in results.items():
        assert lines == expected, name
        assert all(torch.equal(state[key], weights[key]) for key in weights), name
