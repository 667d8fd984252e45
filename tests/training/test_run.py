"""Complete runs through the front door: what they write, and that nothing is lost however they end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dino_exp.config.compose import compose
from dino_exp.config.schema import Config
from dino_exp.dino import verdict
from dino_exp.dino.verdict import Judge, Verdict
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.training import checkpoint
from dino_exp.training.run import train
from dino_exp.training.trainer import Trainer
from tests.programs import ROOT, Program

SMALL = ("experiment=debug", "trainer.batch_size=16", "data.train_size=128", "data.test_size=64")
STOCHASTIC = "backbone.drop_path_rate=0.2"  # so that the random state matters


def configuration(*overrides: str) -> Config:
    return compose([*SMALL, *overrides])


def start(folder: Path, *overrides: str, **how: Any) -> Program:
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    return Program("train.py", *SMALL, *overrides, folder=folder, environment=cache, **how)


def only_run(folder: Path) -> RunDirectory:
    (path,) = (folder / "outputs" / "debug").iterdir()
    return RunDirectory(path)


def steps_logged(directory: RunDirectory) -> list[int]:
    return [line["step"] for line in map(json.loads, directory.metrics_file.read_text().splitlines())]


def weights(directory: RunDirectory) -> dict[str, torch.Tensor]:
    state = checkpoint.load(directory.checkpoints / "last.pt")
    parts = {part: state[part] for part in ("student", "teacher", "loss")}
    return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def assert_same_weights(first: RunDirectory, second: RunDirectory) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert different == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    program = start(folder, STOCHASTIC, plots=True)
    assert program.wait() == 0, program.output
    return only_run(folder), program.stdout


@pytest.mark.spawn
def test_python_train_py_makes_the_run_that_a_fork_makes(
    tmp_path: Path, undisturbed: tuple[RunDirectory, str]
) -> None:
    """Run the command as a person types it; the other tests run forks, which must do the same."""
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, STOCHASTIC]
    cache = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | cache, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    directory = only_run(tmp_path)
    assert files(directory) == files(undisturbed[0])
    assert_same_weights(directory, undisturbed[0])


def files(directory: RunDirectory) -> set[str]:
    held = (str(path.relative_to(directory.path)) for path in directory.path.rglob("*") if path.is_file())
    return {name for name in held if not name.startswith("wandb/")} - {".lock"}


def test_the_command_line_leaves_a_complete_run_directory(undisturbed: tuple[RunDirectory, str]) -> None:
    directory, output = undisturbed
    plots = {f"plots/{name}.png" for name in ("curves", "attention", "crops")}
    texts = {"config.yaml", "status.json", "metrics.jsonl", "summary.json"}
    checkpoints = {f"checkpoints/{name}.pt" for name in ("last", "previous", "best")}
    assert files(directory) == checkpoints | plots | texts
    assert {path.name for path in directory.path.parents[2].iterdir()} == {"outputs", "cache"}

    status = directory.read_status()
    assert status.items() >= {"state": "finished", "step": 16, "total_steps": 16, "attempt": 1}.items()
    config = OmegaConf.load(directory.config_file)
    assert config.backbone.drop_path_rate == 0.2
    assert directory.path.name.startswith("vit_micro_")

    assert steps_logged(directory) == list(range(17))
    lines = read_metrics(directory.metrics_file)
    wanted = {"loss", "ln_k", "kl", "kl_share", "grad_norm", "lr", "weight_decay", "ema_momentum"}
    wanted |= {"teacher_temp", "center_norm", "center_change", "teacher_student_distance", "verdict"}
    wanted |= {"images_per_second", "data_wait_share", "peak_memory_mib", "epoch", "images"}
    outputs = {"entropy", "entropy_share", "marginal_entropy", "mutual_information", "logit_spread"}
    outputs |= {"prototypes_used", "prototypes_perplexity", "feature_std", "feature_rank", "bottleneck_rank"}
    wanted |= {f"{network}/{name}" for network in ("teacher", "student") for name in outputs}
    for line in lines[1:]:
        assert wanted <= line.keys()
        assert line["loss"] == pytest.approx(line["kl"] + line["teacher/entropy"], rel=1e-5)
        assert line["teacher/mutual_information"] == pytest.approx(
            line["teacher/marginal_entropy"] - line["teacher/entropy"], abs=1e-5
        )
    assert [line["step"] for line in lines if "knn_top1" in line] == [0, 8, 16]

    summary = directory.read_summary()
    assert summary["verdict"] == "warming-up"
    assert summary["knn_top1"] == lines[-1]["knn_top1"]
    assert summary["untrained_knn_top1"] == lines[0]["knn_top1"]
    assert summary["environment"]["torch"] == torch.__version__.split("+")[0]
    assert summary["final"]["step"] == 16
    assert {"images_per_second", "wall_seconds", "peak_memory_mib", "raw_pixels_knn_top1"} <= summary.keys()
    assert 0 < summary["attention"]["mass"] < 1

    state = torch.load(directory.checkpoints / "last.pt", weights_only=True)
    assert state["step"] == 16
    for text in ("ln K", "4.1589", "k-NN", "verdict", str(directory.path.name)):
        assert text in output


def test_a_run_killed_twice_ends_with_the_same_weights(
    tmp_path: Path, undisturbed: tuple[RunDirectory, str]
) -> None:
    first = start(tmp_path, STOCHASTIC)
    first.until_it_says("step 3/16")  # no checkpoint yet
    first.kill()
    second = start(tmp_path, STOCHASTIC, "trainer.num_workers=1")
    second.until_it_says("step 12/16")
    second.kill()
    directory = only_run(tmp_path)
    assert directory.read_status()["state"] == "running"
    at = checkpoint.load(directory.checkpoints / "last.pt")["step"]
    assert at >= 10
    third = start(tmp_path, STOCHASTIC)
    assert third.wait() == 0, third.output
    output = third.stdout
    assert f"Resuming from step {at}" in output
    assert steps_logged(directory) == list(range(17))
    assert directory.read_status()["attempt"] == 3
    assert_same_weights(directory, undisturbed[0])


Views = list[torch.Tensor]


def assert_outlived(program: Program, folder: Path, reason: str) -> None:
    """The run has ended as if its output had been read, and said once why it was not."""
    assert program.wait() == 0, program.stderr
    assert program.stderr == f"warning: standard output: {reason}. The run continues without it.\n"
    status = only_run(folder).read_status()
    assert status["state"] == "finished"
    assert steps_logged(only_run(folder))[-1] == status["total_steps"]


def test_a_run_outlives_the_reader_of_its_output(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    program = start(tmp_path, stdout=pipe)
    with pipe.open("rb") as lines:
        lines.readline()
    assert_outlived(program, tmp_path, "nobody reads it any more")


def test_a_full_disk_for_the_output_ends_no_run(tmp_path: Path) -> None:
    assert_outlived(start(tmp_path, stdout=Path("/dev/full")), tmp_path, "the disk is full")


def before_step(patch: pytest.MonkeyPatch, number: int, act: Callable[[Views], Views]) -> None:
    """Replace what the trainer's `number`-th step sees by what `act` makes of it."""
    original = Trainer.train_step

    def stepping(self: Trainer, views: Views, observe: bool = False) -> object:
        return original(self, act(views) if self.step + 1 == number else views, observe)

    patch.setattr(Trainer, "train_step", stepping)


def test_a_finished_run_is_shown_and_never_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configuration("trainer.max_steps=3")
    train(cfg, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    shown = train(cfg, tmp_path / "run")
    assert shown.exit_code == 0
    output = capsys.readouterr().out
    assert "already finished" in output
    assert "resume=never" in output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before

    again = train(configuration("trainer.max_steps=3", "resume=never"), tmp_path / "run")
    assert again.directory == tmp_path / "run-2"
    assert_same_weights(RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run-2"))


def test_another_configuration_is_refused_with_the_differing_keys(tmp_path: Path) -> None:
    train(configuration("trainer.max_steps=2"), tmp_path / "run")
    with pytest.raises(UserError, match=r"loss\.teacher_temp: 0\.02 there, 0\.03 here"):
        train(configuration("trainer.max_steps=2", "loss.teacher_temp=0.03"), tmp_path / "run")
    same = configuration("trainer.max_steps=2", "trainer.log_every=7", "tracker.mode=offline")
    assert train(same, tmp_path / "run").state == "finished"


def test_a_run_that_diverges_fails_says_where_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = configuration("trainer.checkpoint_every=2")
    before_step(monkeypatch, 8, lambda views: [view * float("nan") for view in views])
    result = train(cfg, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    assert (result.state, result.exit_code) == ("failed", 1)
    assert directory.read_summary()["verdict"] == "diverged"
    assert "optimizer.lr" in directory.traceback_file.read_text()
    state = checkpoint.load(directory.checkpoints / "last.pt")
    assert state["step"] == 6
    assert all(tensor.isfinite().all() for tensor in state["student"].values())


def test_an_exception_leaves_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(views: Views) -> Views:
        raise RuntimeError("out of everything")

    with monkeypatch.context() as patch:
        before_step(patch, 1, fail)
        with pytest.raises(RuntimeError, match="out of everything"):
            train(configuration(), tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    assert directory.read_status()["state"] == "failed"
    assert "out of everything" in directory.traceback_file.read_text()
    assert train(configuration(), tmp_path / "run").state == "finished"
    assert not directory.traceback_file.exists()


@pytest.mark.parametrize(
    ("backbone", "name"),
    [
        ("resnet18", "resnet18"),
        ("timm", "convnext_atto"),
        ("xcit_small", "xcit_nano_12_p8_224"),
        ("torchvision", "shufflenet_v2_x0_5"),
    ],
)
def test_library_backbones_train(tmp_path: Path, backbone: str, name: str) -> None:
    small = ("crops.global_size=64", "crops.local_size=32", "eval.bank_size=16", "eval.query_size=8")
    network = (f"backbone={backbone}", f"backbone.name={name}")
    cfg = configuration(*network, *small, "trainer.max_steps=2", "trainer.batch_size=8")
    assert train(cfg, tmp_path / "run").state == "finished"
    assert not (tmp_path / "run" / "plots" / "attention.png").exists()


def test_precision_and_device_errors_name_the_key(tmp_path: Path) -> None:
    for overrides, message in (
        ("trainer.device=mps", r"trainer\.device = mps"),
        ("trainer.batch_size=300", r"trainer\.batch_size = 300"),
    ):
        with pytest.raises(UserError, match=message):
            train(configuration(*overrides.split()), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_on_collapse_stop_ends_the_run(tmp_path: Path) -> None:
    rarely = ("trainer.log_every=10", "trainer.checkpoint_every=100", "eval.every_epochs=1000")
    stop = ("trainer.epochs=40", "trainer.on_collapse=stop", "loss.centering=none")
    cfg = configuration(*stop, *rarely)
    result = train(cfg, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    assert (result.state, result.exit_code) == ("collapsed", 0)
    assert directory.read_status()["state"] == "collapsed"
    summary = directory.read_summary()
    assert summary["verdict"].startswith("collapsed")
    assert summary["steps"] < 320
    assert train(cfg, tmp_path / "run").state == "collapsed"
    assert directory.read_summary() == summary

    on = configuration(*stop, *rarely, "trainer.on_collapse=warn")  # goes on with the same run
    assert train(on, tmp_path / "run").state == "finished"
    assert train(on, tmp_path / "never stopped").state == "finished"
    assert_same_weights(directory, RunDirectory(tmp_path / "never stopped"))
    assert directory.read_summary()["steps"] == 320
    assert train(cfg, tmp_path / "run").message.startswith("already finished")


def test_on_healthy_stop_ends_the_run_when_that_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = Verdict("healthy", "so says the test")
    monkeypatch.setattr(Judge, "_judge", lambda self, step, values: healthy)
    monkeypatch.setattr(verdict, "SETTLED_STEPS", 5)
    monkeypatch.setattr(verdict, "SETTLED_SHARE", 0)
    rarely = ("trainer.log_every=10", "trainer.checkpoint_every=100", "eval.every_epochs=1000")
    cfg = configuration("trainer.epochs=10", "trainer.on_healthy=stop", *rarely)
    result = train(cfg, tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    summary = directory.read_summary()
    assert (result.state, result.exit_code) == ("finished", 0)
    assert (summary["steps"], summary["verdict"]) == (
        60,
        "healthy",
    )  # warmed up at 50
    assert checkpoint.load(directory.checkpoints / "last.pt")["step"] == 60
    assert train(cfg, tmp_path / "run").state == "finished"
    assert directory.read_summary() == summary
