"""Tests that need a GPU; skipped without one.

The trainings of `test_oracle_training` run on a GPU too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.step import random_views
from dino_exp.config.compose import compose
from dino_exp.config.targets import build
from dino_exp.data.loader import BatchOrder, CropBatch, batches
from dino_exp.installation import CONF
from dino_exp.training import checkpoint
from dino_exp.training.graph import WARM_UP
from dino_exp.training.run import train
from dino_exp.training.trainer import Trainer
from tests.data.test_fused_color import crops_and_table, every_step
from tests.training.test_graph import MOVING, OBSERVED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.spawn,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

GPU = torch.device("cuda")
OF_A_BYTE = 2 / 255
SGD = ("optimizer=sgd", "optimizer.warmup_epochs=0")


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("fused", [False, True])
def test_colors_equal_those_of_the_cpu_within_two_gray_levels(fused: bool, size: int) -> None:
    augmentation = every_step()
    crops, table = crops_and_table(augmentation, images=16, size=size)
    expected = augmentation(crops, table)
    if fused:
        augmentation.fuse()
    found = augmentation(crops.to(GPU), table).cpu()
    assert fused == (augmentation._fused is not None)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert ((found - expected).abs() * std).max() < OF_A_BYTE


def pinned_batch(of: Trainer, step: int = 0) -> CropBatch:
    """Return the batch of a step as the loop gets it."""
    order = BatchOrder(len(of.splits.train), of.cfg.trainer.batch_size, of.cfg.trainer.seed, step, step + 1)
    (batch,) = batches(of.crop_batches, order, 0, pin_memory=True)
    assert batch.global_crops.flatten(0, 1).is_pinned()
    return batch


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise where the host waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_step_does_not_wait_for_the_device(precision: str, optimizer: str, tmp_path: Path) -> None:
    words = ["experiment=debug", f"optimizer={optimizer}", "optimizer.warmup_epochs=0"]
    cfg = compose([*words, f"data.root={tmp_path}", f"trainer.precision={precision}"])
    trainer = Trainer(cfg, build(cfg.data), GPU)
    batch = pinned_batch(trainer)
    trainer.train_step(trainer.augmented(batch))  # some kernels are prepared at their first use
    with no_waiting():
        losses = torch.stack([trainer.train_step(trainer.augmented(batch))[0] for _ in range(3)])
    assert losses.isfinite().all()


@pytest.mark.parametrize(
    ("precision", "words", "atol"),
    [
        ("fp32", ["backbone.stem=patch"], 1e-4),
        ("fp32", ["backbone.stem=conv", "head.use_bn=true"], 1e-3),
        ("bf16", ["backbone.stem=conv", "loss.centering=sinkhorn"], 1e-2),
    ],
)
def test_a_step_in_a_cuda_graph_is_the_eager_step(
    precision: str, words: list[str], atol: float, tmp_path: Path
) -> None:
    words = ["experiment=debug", f"data.root={tmp_path}", f"trainer.precision={precision}", *words]
    cfg = compose([*words, *SGD, *MOVING, "trainer.cuda_graph=true"])
    eager, graphed = (Trainer(cfg, build(cfg.data), GPU) for _ in range(2))
    eager.graph = None
    losses = []
    for step in range(16):
        torch.manual_seed(step)
        views = random_views(eager)
        losses.append([each.train_step(views, observe=step in OBSERVED)[0] for each in (eager, graphed)])
    assert graphed.graph is not None
    assert graphed.graph.recorded is not None
    expected, found = torch.stack([torch.stack(pair) for pair in losses]).T
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    for part in ("student", "teacher", "loss"):  # buffers too
        torch.testing.assert_close(graphed.state()[part], eager.state()[part], rtol=0.1, atol=atol)


def test_replaying_a_step_does_not_wait_for_the_device(tmp_path: Path) -> None:
    cfg = compose(["experiment=debug", f"data.root={tmp_path}", "trainer.cuda_graph=true"])
    trainer = Trainer(cfg, build(cfg.data), GPU)
    views = random_views(trainer)
    for _ in range(WARM_UP + 1):
        trainer.train_step(views)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = torch.stack([trainer.train_step(views)[0] for _ in range(3)])
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert len(set(losses.tolist())) == 3  # a replay does not overwrite the loss of the one before


UPRIGHT = "augment.rotation=0"
INPUTS = {
    "released": ["augment=released"],
    "rotated": ["augment.rotation=30"],
    "turned": [UPRIGHT, "augment.vertical_flip=0.5", "augment.quarter_turns=1", "augment.channel_drop=0.3"],
    "per channel": [UPRIGHT, "augment.per_channel=true", "augment.gray_method=average"],
    "made by PIL": [UPRIGHT, "data.backend=pil"],
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("words", INPUTS.values(), ids=INPUTS)
def test_input_is_made_while_the_step_before_runs(words: list[str], fused: bool, tmp_path: Path) -> None:
    cfg = compose(["experiment=debug", f"data.root={tmp_path}", *words])
    trainer = Trainer(cfg, build(cfg.data), GPU)
    if fused:
        trainer.augment.fuse()
    made = [pinned_batch(trainer, step) for step in range(4)]
    expected = [trainer._augmented(batch) for batch in made]  # in one stream, one after another
    for _ in range(2):  # the first time memory is allocated, which may wait
        torch.cuda.synchronize()
        seen, done = [], torch.cuda.Event()
        with no_waiting():
            torch.cuda._sleep(1_000_000_000)  # a step of half a second
            for batch in made:
                seen.append([view.clone() for view in trainer.augmented(batch)])
            done.record()
        trainer._input_stream.synchronize()
        before_the_step_ended = not done.query()
    assert before_the_step_ended
    torch.testing.assert_close(seen, expected, rtol=0, atol=0)


def run(folder: Path, *words: str) -> Path:
    """Run `train.py experiment=debug`, and return the run directory."""
    command = [sys.executable, str(CONF.parent / "train.py"), "experiment=debug", "tracker=none", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (directory,) = (folder / "outputs").glob("debug/*")
    return directory


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_a_run_on_the_gpu_finishes_with_a_verdict(precision: str, tmp_path: Path) -> None:
    directory = run(tmp_path, f"trainer.precision={precision}")
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["state"] == "finished"
    assert summary["environment"]["device"].startswith("cuda")
    assert summary["final"]["loss"] > 0
    state = checkpoint.load(directory / "checkpoints" / "last.pt")
    assert all(value.isfinite().all() for value in state["teacher"].values() if value.is_floating_point())


def test_losses_equal_those_of_the_cpu(tmp_path: Path) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        (folder := tmp_path / device).mkdir()
        words = ("trainer.log_every=1", "trainer.max_steps=10", "trainer.precision=fp32", *SGD)
        directory = run(folder, f"trainer.device={device}", *words)
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        losses[device] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses["cpu"]) == 10
    assert losses["cuda"] == pytest.approx(losses["cpu"], abs=2e-3)


def test_figures_of_evaluations_equal_those_of_the_cpu(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(compose(["experiment=debug", "tracker=none", "trainer.device=cpu"]), run)
    found = []
    for device in ("cpu", "cuda"):
        words = [f"run={run}", f"device={device}", "eval=[knn,linear,attention]", "linear.epochs=5"]
        cache = {"XDG_CACHE_HOME": str(tmp_path / device), "PYTHONPATH": str(CONF.parent)}
        command = [sys.executable, str(CONF.parent / "evaluate.py"), *words, "tracker=none"]
        subprocess.run(command, env=os.environ | cache, check=True, capture_output=True)
        records = json.loads((run / "evaluations.json").read_text())
        found.append({record["evaluation"]: record["figures"] for record in records})
    assert found[0].keys() == {"knn", "linear", "attention"}
    for evaluation, figures in found[0].items():
        assert found[1][evaluation] == pytest.approx(figures, abs=2)  # one of 128 images is 0.8
