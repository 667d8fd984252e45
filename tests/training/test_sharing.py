"""Runs that share their batches end with the very weights that they have alone."""

import re
import signal
from pathlib import Path

import pytest

from dino_exp.config.batch_stream import stream_settings, who_shares
from dino_exp.config.targets import build
from dino_exp.data.shared_batches import SharedBatches
from dino_exp.parallel.processes import SHARED_BATCHES
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training.run import train
from dino_exp.training.sharing import stream_of
from dino_exp.training.trainer import Trainer
from tests.programs import Program, until
from tests.training.test_run import SMALL, STOCHASTIC, assert_same_weights, configuration

STEPS = 16
TEMPERATURES = ("loss.teacher_temp=0.03", "loss.teacher_temp=0.05")


def start(memory: Path, folder: Path, temperature: str, workers: int) -> Program:
    variables = {"XDG_CACHE_HOME": str(folder / "cache"), SHARED_BATCHES: str(memory)}
    words = (*SMALL, STOCHASTIC, temperature, f"trainer.num_workers={workers}", "hydra.run.dir=run")
    folder.mkdir(exist_ok=True)
    return Program("train.py", *words, folder=folder, environment=variables)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_runs_share_and_one_is_killed_and_resumed(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    memory = tmp_path / "memory"
    memory.mkdir()
    cfgs = [configuration(STOCHASTIC, temperature) for temperature in TEMPERATURES]
    trainer = Trainer(cfgs[0], build(cfgs[0].data), torch.device("cpu"))
    # a third run that stays at the first step, so that every batch is there for those that come later
    third = SharedBatches(memory, stream_of(trainer), trainer.crop_batches.layout(16), 0, STEPS)
    folders = [tmp_path / "one", tmp_path / "other"]
    one, other = (
        start(memory, folder, each, workers) for folder, each in zip(folders, TEMPERATURES, strict=True)
    )
    killed = RunDirectory(folders[1] / "run")
    until(lambda: (killed.checkpoints / "last.pt").exists() or other.returncode is not None, "a checkpoint")
    other.signal(signal.SIGKILL)
    other.wait()
    assert one.wait() == 0, one.output
    resumed = start(memory, folders[1], TEMPERATURES[1], workers)
    assert resumed.wait() == 0, resumed.output
    assert "shared with runs here of the same images" in " ".join(one.stdout.split())
    taken, of = re.findall(r"(\d+) of (\d+) batches were made by other runs", resumed.output)[0]
    assert int(taken) > int(of) / 2
    for folder, cfg in zip(folders, cfgs, strict=True):
        assert train(cfg, folder / "alone").state == "finished"
        assert_same_weights(RunDirectory(folder / "run"), RunDirectory(folder / "alone"))
    third.leave()
    until(lambda: not list(memory.glob("*/*/*.run")), "the end of all runs")


def test_runs_share_if_nothing_that_makes_the_batches_differs() -> None:
    cfgs = [configuration(*words) for words in ((), ("loss.teacher_temp=0.05", "head.out_dim=32"))]
    assert stream_settings(cfgs[0]) == stream_settings(cfgs[1])
    for other in ("trainer.seed=1", "augment.flip=0", "trainer.batch_size=8", "data.train_size=64"):
        assert stream_settings(cfgs[0]) != stream_settings(configuration(other)), other


def test_what_keeps_runs_from_sharing_is_named() -> None:
    runs = [stream_settings(configuration(f"trainer.seed={seed}")) for seed in (0, 1)]
    both = stream_settings(configuration("trainer.seed=1", "crops.local_size=8", "augment.flip=0"))
    assert who_shares(runs[:1] * 2) == "Runs that train at the same time share their batches of images."
    assert who_shares(runs) == "trainer.seed differs: these runs do not share images."
    assert who_shares([*runs, both]).startswith("augment.flip, crops.local_size, trainer.seed differ: these")
    assert who_shares([*runs, runs[0]]).endswith("those that agree share their images.")
