"""Checkpoints that are damaged or of another run: refused with nothing changed, and a way to go on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_exp.config.compose import compose
from dino_exp.config.schema import Config
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint
from dino_exp.training.attempt import attempt
from dino_exp.training.trainer import Trainer

State = dict[str, Any]


def configuration(*overrides: str) -> Config:
    small = ("trainer.batch_size=16", "data.train_size=128", "data.test_size=64")
    return compose(["experiment=debug", *small, *overrides])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was stopped at step 12: previous.pt is of step 10, best.pt of step 8."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    step = Trainer.train_step

    def stepping(self: Trainer, views: list[torch.Tensor], observe: bool = False) -> object:
        if self.step + 1 == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, views, observe)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
        patch.setattr(Trainer, "train_step", stepping)
        assert attempt(configuration(), path, None).exit_code == 143
    steps = {name: checkpoint.load(path / "checkpoints" / name)["step"] for name in checkpoint.CHECKPOINTS}
    assert steps == {"last.pt": 12, "previous.pt": 10, "best.pt": 8}
    return path


@pytest.fixture
def run(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(stopped.parent / "cache"))
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.fixture(scope="module")
def ended(stopped: Path) -> Path:
    path = Path(shutil.copytree(stopped, stopped.parent / "ended"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(stopped.parent / "cache"))
        assert attempt(configuration(), path, None).state == "finished"
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def changed(change: Callable[[State], object]) -> Callable[[Path], object]:
    """Return the change of a checkpoint's content, with right check sums."""

    def write(file: Path) -> None:
        state = torch.load(file, weights_only=True)
        change(state)
        torch.save(state, file)

    return write


def flip_one_bit_of_a_weight(file: Path) -> None:
    data, weight = bytearray(file.read_bytes()), checkpoint.load(file)["student"]["backbone.cls_token"]
    data[data.find(weight.numpy().tobytes()) + 7] ^= 0x40
    file.write_bytes(data)
    assert not torch.equal(torch.load(file, weights_only=True)["student"]["backbone.cls_token"], weight)


def replace_by_a_link_to_nothing(file: Path) -> None:
    file.unlink()
    file.symlink_to("lost.pt")


def replace_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def replace_by_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


class Attack:
    """An object that ends this process when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (99,)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip_one_bit_of_a_weight, "not a complete file of weights (Bad CRC-32"),
    "cut": (lambda file: os.truncate(file, file.stat().st_size - 1), "not a complete file of weights"),
    "empty": (lambda file: os.truncate(file, 0), "not a complete file of weights"),
    "zeros": (lambda file: file.write_bytes(bytes(file.stat().st_size)), "not a complete file of weights"),
    "a folder": (replace_by_a_folder, "not a regular file"),
    "a pipe": (replace_by_a_pipe, "not a regular file"),
    "a link to nothing": (replace_by_a_link_to_nothing, "not a regular file"),
    "code": (changed(lambda state: state.update(loss=Attack())), "which loading would execute"),
    "another run": (
        changed(
            lambda state: state.update(
                config=state["config"].replace("  batch_size: 16\n", "  batch_size: 17\n")
            )
        ),
        "a checkpoint of another run (trainer.batch_size: 17 there, 16 here)",
    ),
    "a later step": (
        changed(lambda state: state.update(step=17)),
        "another run (step = 17 there",
    ),
    "a step before the first": (changed(lambda state: state.update(step=-1)), "another run (step = -1 there"),
    "not a step": (changed(lambda state: state.update(step="3")), "another run (step = '3' there"),
    "no optimizer": (changed(lambda state: state.pop("optimizer")), "(KeyError: 'optimizer')"),
    "other shapes": (changed(lambda state: state["loss"].update(center=torch.zeros(1, 3))), "RuntimeError"),
    "no configuration": (changed(lambda state: state.pop("config")), "it has no configuration"),
    "no YAML": (changed(lambda state: state.update(config="a: [")), "not a complete file of weights"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_checkpoint_is_refused_and_nothing_is_changed(
    kind: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, message = BAD[kind]
    damage(run / "checkpoints" / "last.pt")
    before = content(run)
    assert attempt(configuration(), run, None).exit_code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert message in said
    assert said.endswith(
        " Remove it to resume from previous.pt, the checkpoint before it; or put best.pt in its place; or "
        "train from the start with resume=never."
    )
    assert content(run) == before


WAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "last": (lambda folder: None, "Resuming from step 12 of 16"),
    "previous": (
        lambda folder: (folder / "last.pt").unlink(),
        "Resuming from step 10 of 16",
    ),
    "best": (
        lambda folder: (folder / "best.pt").replace(folder / "last.pt"),
        "Resuming from step 8 of 16",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_from_an_earlier_checkpoint_the_run_ends_as_if_nothing_had_happened(
    way: str, run: Path, ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    act, message = WAYS[way]
    act(run / "checkpoints")
    assert attempt(configuration(), run, None).state == "finished"
    said = capsys.readouterr().out
    assert message in said
    assert ("previous.pt is used" in said) == (way == "previous")
    assert ("The run had reached step 12" in said) == (way != "last")
    states = [checkpoint.load(path / "checkpoints" / "last.pt") for path in (run, ended)]
    for part in ("student", "teacher", "loss"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    lines = [read_metrics(RunDirectory(path).metrics_file) for path in (run, ended)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == list(range(17))


def test_where_there_are_no_hard_links_the_last_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    checkpoint.save(tmp_path / "last.pt", {"config": "", "step": 1})
    monkeypatch.setattr(os, "link", refuse)
    checkpoint.save(tmp_path / "last.pt", {"config": "", "step": 2})
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 2
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_the_only_good_checkpoint_is_kept_until_the_next_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    checkpoint.save(tmp_path / "previous.pt", {"config": "", "step": 1})
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "last.pt", {"config": "", "step": 2})
    assert checkpoint.newest(tmp_path) == "previous.pt"
    assert checkpoint.load(tmp_path / "previous.pt")["step"] == 1


def test_whichever_bit_is_flipped_it_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    file, weights = tmp_path / "last.pt", torch.arange(40.0)
    state = {"config": "seed: 0", "step": 3, "student": {"a": weights, "b": weights.half()}, "seconds": 0.5}
    checkpoint.save(file, state)
    good, noticed = file.read_bytes(), 0
    for position in range(0, 8 * len(good), 29):
        data = bytearray(good)
        data[position // 8] ^= 1 << position % 8
        file.write_bytes(data)
        try:
            found = checkpoint.load(file)
        except UserError:
            noticed += 1
            continue
        tensors = found.pop("student")
        assert found == {"config": "seed: 0", "step": 3, "seconds": 0.5}, position
        assert torch.equal(tensors["a"], weights), position
        assert torch.equal(tensors["b"], weights.half()), position
    assert noticed > 100
