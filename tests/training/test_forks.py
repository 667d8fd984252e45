"""Forks through `dino_exp.train`: runs that continue a kept checkpoint of another, with some keys changed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_exp import train
from dino_exp.errors import UserError
from dino_exp.report.fork_facts import fork_facts
from dino_exp.report.loading import load_run
from dino_exp.runs.kept_checkpoints import Keeping, kept
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training import checkpoint
from tests.programs import Program
from tests.trained import trained

SMALL = ["experiment=debug", "trainer.batch_size=16", "data.train_size=128", "data.test_size=64"]
STOCHASTIC = "backbone.drop_path_rate=0.2"  # so that the random state matters
PARTS = ("student", "teacher", "loss", "optimizer", "judge")
TIMES = {"images_per_second", "data_wait_share", "peak_memory_mib"}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of 16 steps, which has kept every fourth, in its working folder's `outputs`."""
    words = [*SMALL, STOCHASTIC, "trainer.keep_checkpoints=every:4"]
    run = trained(tmp_path_factory.mktemp("parent"), words)
    assert list(kept(run / "checkpoints")) == [4, 8, 12, 16]
    return run


@pytest.fixture(autouse=True)
def _in_a_folder(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(parent.parents[2] / "cache"))


def lines(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in found]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for at, item in items for key, leaf in flat(item, f"{name}.{at}").items()}
    return {name: value}


def assert_same_state(one: Path, other: Path) -> None:
    """Compare the last checkpoints of two runs: all that is trained, bit by bit."""
    states = [checkpoint.load(run / "checkpoints" / "last.pt") for run in (one, other)]
    first, second = ({part: state[part] for part in (*PARTS, "step")} for state in states)
    ours, theirs = flat(first), flat(second)
    assert ours.keys() == theirs.keys()
    assert [
        name
        for name, value in ours.items()
        if not (torch.equal(value, theirs[name]) if torch.is_tensor(value) else value == theirs[name])
    ] == []


def test_an_unchanged_fork_is_its_parent_bit_by_bit(parent: Path) -> None:
    fork = train([f"fork_from={parent}@8"]).directory
    assert fork.name != parent.name
    assert fork.name[:-8] == parent.name[:-8]
    assert_same_state(fork, parent)
    assert lines(fork) == lines(parent)
    status = RunDirectory(fork).read_status()
    assert status["attempts"][0]["from_step"] == 8


def test_a_fork_has_what_is_typed_and_else_its_parents_settings(
    parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork = train([f"fork_from={parent}@8", "loss.teacher_temp=0.03", "trainer.epochs=4"]).directory
    assert "drop_path_rate: 0.2" in (fork / "config.yaml").read_text()
    ours, theirs = lines(fork), lines(parent)
    assert ours[:9] == theirs[:9]
    assert (ours[9]["teacher_temp"], theirs[9]["teacher_temp"]) == (0.03, 0.02)
    assert ours[-1]["step"] == 32
    assert ours[9]["lr"] > theirs[9]["lr"]
    said = capsys.readouterr().out
    assert "loss.teacher_temp" in said
    assert "16 → 32 steps" in said
    before, after = (line["lr"] for line in (theirs[9], ours[9]))
    assert f"{before:.4g} before, {after:.4g} after the fork" in said
    facts = dict(fork_facts(load_run(fork)))
    assert facts["Fork of"] == f"{parent.name} at step 8"
    assert facts["Changed at the fork"] == "loss.teacher_temp 0.02 → 0.03; trainer.epochs 2 → 4"
    other = train([f"fork_from={parent}@12", "loss.teacher_temp=0.03", "trainer.epochs=4"]).directory
    assert other.name != fork.name


def test_a_fork_needs_its_parent_no_longer(parent: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(parent, tmp_path / "outputs" / "debug" / parent.name)
    words = [f"fork_from={copy}@8", "loss.teacher_temp=0.03"]
    undisturbed = train([*words, "output_root=undisturbed"]).directory
    program = Program("train.py", *words, "trainer.checkpoint_every=2", folder=tmp_path)
    program.until_it_says("step 11/16")
    program.signal(signal.SIGKILL)
    program.wait()
    shutil.rmtree(copy)
    fork = train(words).directory
    assert len(RunDirectory(fork).read_status()["attempts"]) == 2
    with pytest.raises(UserError, match=r"that run is gone; it has forks of @8\."):
        train([f"fork_from={copy}@12"])
    assert fork.name == undisturbed.name
    assert_same_state(fork, undisturbed)
    assert lines(fork) == lines(undisturbed)


def test_a_fork_of_a_fork_and_of_the_last_step(parent: Path) -> None:
    first = train([f"fork_from={parent}", "trainer.epochs=3", "trainer.keep_checkpoints=every:20"]).directory
    second = train([f"fork_from={first}@20", "ema.momentum=0.9"]).directory
    assert len({parent.name[-8:], first.name[-8:], second.name[-8:]}) == 3
    assert [line["step"] for line in lines(second)] == list(range(25))


def test_step_0_is_the_parents_command_again(parent: Path) -> None:
    again = train([f"fork_from={parent}@0", "trainer.max_steps=2"]).directory
    plain = train([*SMALL, STOCHASTIC, "trainer.max_steps=2"]).directory
    assert again == plain


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fork_from=RUN@7", "step 7 was not kept; the nearest are @4, @8 or @12"),
        ("fork_from=RUN@eight", "eight is no step; write"),
        ("fork_from=RUN@8,12", "one parent"),
        ("fork_from=outputs/nothing@8", "no such run"),
        ("fork_from=FOLDER@8", "not the directory of a run, as it has no config.yaml; give one, e.g. "),
        ("fork_from=RUN@8 experiment=demo", "experiment=demo: a fork has the settings of one run"),
        ("fork_from=RUN@8 head.out_dim=128", "head.out_dim = 128: 64 in the parent, and a fork cannot"),
        ("fork_from=RUN@8 backbone=resnet18", "backbone.name = resnet18: vit_micro in the parent"),
        ("fork_from=RUN@8 crops.global_size=48", "crops.global_size = 48: 32 in the parent"),
        ("fork_from=RUN@8 data.train_size=256", "data.train_size = 256: 128 in the parent"),
        ("fork_from=RUN@8 trainer.batch_size=32", "trainer.batch_size = 32: 16 in the parent"),
        (
            "fork_from=RUN@8 optimizer._target_=dino_exp.dino.optimizer.sgd",
            "optimizer._target_ = dino_exp.dino",
        ),
        ("fork_from=RUN@8 trainer.max_steps=8", "trainer.max_steps = 8: the fork begins at step 8; raise it"),
        ("fork_from=RUN@8 fork_parent=mine", "fork_parent = mine: do not set it"),
        ("fork_from=RUN@8 loss.teacher_tmp=1", "did you mean loss.teacher_temp?"),
        ("fork_from=RUN", "the fork ends at step 16; fork an earlier step, or raise trainer.epochs = 2"),
        ("fork_parent=mine", "only the command line sets it"),
        ("trainer.keep_checkpoints=all", "write every:N (all of each N steps) or last:K"),
        ("trainer.keep_checkpoints=last:0", "write every:N"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_exists(
    parent: Path, tmp_path: Path, words: str, said: str
) -> None:
    typed = words.replace("RUN", str(parent)).replace("FOLDER", str(parent.parent)).split()
    with pytest.raises(UserError) as error:
        train(typed)
    assert said in str(error.value)
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_of_forks_has_a_folder(parent: Path, tmp_path: Path) -> None:
    words = ("-m", f"fork_from={parent}@12", "loss.teacher_temp=0.02,0.04")
    assert Program("train.py", *words, folder=tmp_path).wait() == 0
    (sweep,) = (tmp_path / "outputs").iterdir()
    assert sweep.name == "debug_sweep_teacher_temp"
    assert [[line["step"] for line in lines(run)][-1] for run in sweep.iterdir() if run.is_dir()] == [16, 16]


def test_a_ring_keeps_the_newest(tmp_path: Path) -> None:
    words = [*SMALL, "trainer.checkpoint_every=3", "trainer.keep_checkpoints=last:2"]
    folder = train(words).directory / "checkpoints"
    assert list(kept(folder)) == [12, 15]
    assert [checkpoint.load(path)["step"] for path in kept(folder).values()] == [12, 15]
    plain = train([*SMALL, "trainer.keep_checkpoints=null", "output_root=plain"]).directory
    assert plain.name == folder.parent.name


def test_checkpoints_are_kept_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError("no links here")

    (tmp_path / "last.pt").write_bytes(b"weights")
    monkeypatch.setattr("os.link", refused)
    Keeping.of("every:5", 500).keep(tmp_path / "last.pt", 10)
    (tmp_path / "last.pt").write_bytes(b"others")
    assert [path.read_bytes() for path in kept(tmp_path).values()] == [b"weights"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "step_10.pt"]
