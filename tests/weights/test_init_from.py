"""`train.py init_from=...`: what a run loads from given weights, its identity, and its errors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dino_exp import cli
from dino_exp.config.compose import compose
from dino_exp.config.identity import run_id
from dino_exp.config.schema import Config
from dino_exp.config.targets import build
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint
from dino_exp.training.run import train
from dino_exp.training.trainer import Trainer
from dino_exp.weights.released_layout import released_layout

STILL = (
    "optimizer.lr=0",
    "optimizer.min_lr=0",
    "ema.schedule=constant",
    "ema.momentum=1",
    "loss.center_momentum=0.75",
)
"""Overrides of a training in which only the center changes."""


def configuration(*overrides: str) -> Config:
    return compose(["experiment=debug", "trainer.max_steps=2", "backbone.stem=patch", *overrides])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "run"
    train(configuration(), path)
    return path


def saved(run: Path) -> dict[str, Any]:
    return checkpoint.load(run / "checkpoints" / "last.pt")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], part: str = "") -> bool:
    keys = [key for key in theirs if key.startswith(part)]
    assert keys
    return all(torch.equal(ours[key], theirs[key]) for key in keys)


def trainer_of(cfg: Config) -> Trainer:
    trainer = Trainer(cfg, build(cfg.data), torch.device("cpu"))
    trainer.begin_with_weights()
    return trainer


def test_a_run_starts_from_both_networks_and_the_center_of_another_run(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configuration(f"init_from={source}", *STILL, "trainer.seed=1")
    train(cfg, tmp_path / "run")
    before, after = saved(source), saved(tmp_path / "run")
    assert same(after["student"], before["student"])
    assert same(after["teacher"], before["teacher"])
    assert not same(after["teacher"], before["student"])
    moved = after["loss"]["center"] - 0.75**2 * before["loss"]["center"]
    logits_share = moved.norm() / before["loss"]["center"].norm()
    assert 0.2 < logits_share < 0.8, "what remains should be two batch means with weight 0.44"

    printed = " ".join(capsys.readouterr().out.split())
    assert "last.pt: a checkpoint of this project, step 2" in printed
    assert f"teacher its teacher's backbone and head: {len(before['teacher'])} tensors" in printed
    assert f"student its student's backbone and head: {len(before['student'])} tensors" in printed
    assert "center the file's, with norm " in printed
    assert "lr, weight decay, λ and τ_t follow this run's schedules from step 0" in printed
    summary = RunDirectory(tmp_path / "run").read_summary()
    assert summary["initial_knn_top1"] == read_metrics(source / "metrics.jsonl")[-1]["knn_top1"]
    assert "untrained_knn_top1" not in summary


def test_a_released_checkpoint_loads_networks_and_center_and_a_bare_backbone_only_the_backbone(
    source: Path, tmp_path: Path
) -> None:
    ours = saved(source)
    center = torch.full((1, 64), 0.5)
    released = released_layout(ours["student"], ours["teacher"], center, epoch=3, args={"arch": "vit"})
    torch.save(released, tmp_path / "released.pth")
    full = trainer_of(configuration(f"init_from={tmp_path}/released.pth"))
    assert same(dict(full.student.state_dict()), ours["student"])
    assert same(dict(full.teacher.state_dict()), ours["teacher"])
    assert torch.equal(full.dino_loss.center, center)
    assert full.dino_loss.center_initialized
    assert full.taken["from"] == f"{tmp_path}/released.pth: a released DINO checkpoint, epoch 3"

    only = trainer_of(configuration(f"init_from={tmp_path}/released.pth", "init_parts=backbone"))
    fresh = Trainer(only.cfg, only.splits, only.device)
    bare = {key[9:]: value for key, value in ours["teacher"].items() if key.startswith("backbone.")}
    torch.save(bare, tmp_path / "bare.pth")
    alone = trainer_of(configuration(f"init_from={tmp_path}/bare.pth", "head.out_dim=32"))
    assert same(dict(only.student.state_dict()), ours["student"], "backbone.")
    assert same(dict(only.student.state_dict()), dict(fresh.student.state_dict()), "head.")
    assert same(dict(alone.student.state_dict()), ours["teacher"], "backbone.")
    assert same(dict(alone.teacher.state_dict()), ours["teacher"], "backbone.")
    for trainer in (only, alone):
        assert not trainer.dino_loss.center.any()
        assert not trainer.dino_loss.center_initialized
        assert trainer.taken["center"].startswith("starts as configured (loss.center_init = first_batch)")
        assert trainer.taken["student"].endswith("the head starts from the seed")


def test_the_center_is_ignored_with_another_centering_or_shape(source: Path, tmp_path: Path) -> None:
    sinkhorn = trainer_of(configuration(f"init_from={source}", "loss.centering=sinkhorn"))
    assert sinkhorn.taken["center"] == "not used (loss.centering = sinkhorn)"
    assert not sinkhorn.dino_loss.center.any()
    ours = saved(source)
    torch.save({"teacher": ours["teacher"], "dino_loss": {"center": torch.ones(1, 9)}}, tmp_path / "odd.pth")
    odd = trainer_of(configuration(f"init_from={tmp_path}/odd.pth"))
    assert odd.taken["center"].endswith("the file's has shape (1, 9), this run's (1, 64)")
    assert not odd.dino_loss.center.any()


def test_the_run_id_depends_on_the_content_of_the_weights_and_not_on_their_path(
    source: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.pt"
    shutil.copy(source / "checkpoints" / "last.pt", copy)
    ids = [
        run_id(configuration(*overrides))
        for overrides in (
            [],
            ["init_parts=backbone"],
            [f"init_from={source}"],
            [f"init_from={copy}"],
            [f"init_from={copy}", "init_parts=backbone"],
        )
    ]
    assert ids[0] == ids[1]
    assert ids[2] == ids[3]
    assert len(set(ids)) == 3
    torch.save(saved(source) | {"seconds": 0.5}, copy)
    assert run_id(configuration(f"init_from={copy}")) != ids[2]


def test_a_resume_does_not_need_the_initial_weights(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    shutil.copy(source / "checkpoints" / "last.pt", copy)
    # as a launcher passes it on
    cfg: Any = OmegaConf.create(OmegaConf.to_yaml(configuration(f"init_from={copy}"), resolve=True))
    finished, stopped = tmp_path / "finished", tmp_path / "stopped"
    train(cfg, finished)
    longer: Any = OmegaConf.merge(cfg, {"trainer": {"max_steps": 4}})
    train(longer, tmp_path / "longer")
    shutil.copytree(finished, stopped)
    OmegaConf.save(longer, stopped / "config.yaml")
    last = stopped / "checkpoints" / "last.pt"
    checkpoint.save(last, checkpoint.load(last) | {"config": OmegaConf.to_yaml(longer)})
    RunDirectory(stopped).mark(state="preempted")
    copy.unlink()
    train(longer, stopped)
    for part in ("student", "teacher", "loss"):
        assert same(saved(stopped)[part], saved(tmp_path / "longer")[part])
    with pytest.raises(UserError, match="no such file"):
        train(longer, tmp_path / "another")
    copy.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"copy.pt: not the weights that the run was configured with"):
        train(longer, tmp_path / "another")
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["init_from=lost.pth"], "init_from = lost.pth: no such file"),
        (["init_from=empty.pth"], "init_from = empty.pth: an empty file"),
        (["init_from=folder"], "init_from = folder: no checkpoints/last.pt in this folder"),
        (["init_from=text.pth"], "text.pth: not a complete file of weights"),
        (["init_from=tensors.pth"], "tensors.pth: no tensor has a name of the backbone's"),
        (["init_sha256=abc"], "init_sha256 = abc: not a SHA-256"),
        (["init_sha256=" + 64 * "0"], "init_sha256: belongs to weights"),
        (["init_parts=head"], "init_parts = head: must be all or backbone"),
    ],
)
def test_unusable_weights_are_refused_before_anything_is_created(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    error: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("no weights\n")
    torch.save({"conv1.weight": torch.ones(4, 3, 2, 2)}, tmp_path / "tensors.pth")
    before = sorted(tmp_path.iterdir())
    assert cli.main(["experiment=debug", *overrides]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(error)
    assert printed.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_head_of_another_size_is_refused_with_both_shapes_and_the_fix(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    words = ["experiment=debug", "backbone.stem=patch", f"init_from={source}", "head.out_dim=32"]
    assert cli.main(words) == 2
    printed = capsys.readouterr().err
    assert "head.last_layer.weight_g has shape (64, 1), the network's (32, 1)" in printed
    assert "set head.out_dim=64 head.bottleneck_dim=64" in printed
    assert "init_parts=backbone" in printed
    assert list(tmp_path.iterdir()) == []
