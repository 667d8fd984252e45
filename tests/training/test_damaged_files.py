"""Runs whose files were damaged: what the other files have is used, and nothing of it is lost."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dino_exp.config.compose import compose
from dino_exp.config.identity import run_id
from dino_exp.config.schema import Config
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training.run import train
from tests.runs.test_run_files import DAMAGED

SOME = {name: DAMAGED[name] for name in ("empty", "cut", "deep objects")}
SMALL = ("experiment=debug", "trainer.batch_size=16", "data.train_size=64", "data.test_size=32")


@pytest.fixture(scope="module")
def cfg() -> Config:
    return compose([*SMALL, "trainer.epochs=2"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cfg: Config) -> Path:
    path = tmp_path_factory.mktemp("finished") / run_id(cfg)
    assert train(cfg, path).state == "finished"
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    """Return a copy of a run that was killed after its last step."""
    shutil.copytree(finished, tmp_path / finished.name)
    directory = RunDirectory(tmp_path / finished.name)
    directory.summary_file.unlink()
    directory.mark(state="running")
    return directory


def steps(directory: RunDirectory) -> list[int]:
    return [json.loads(line)["step"] for line in directory.metrics_file.read_text().splitlines()]


@pytest.mark.parametrize("content", SOME.values(), ids=SOME)
def test_a_run_resumes_without_its_status_and_configuration(
    run: RunDirectory, cfg: Config, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run.config_file.read_bytes()
    for file in (run.status_file, run.config_file):
        file.write_bytes(content)
    assert train(cfg, run.path).state == "finished"
    assert steps(run) == list(range(9))
    assert run.read_status()["state"] == "finished"
    assert run.read_summary()["steps"] == 8
    assert run.config_file.read_bytes() == whole
    for name in ("status.json", "config.yaml"):
        assert (run.path / f"{name}.damaged").read_bytes() == content
        assert f"kept as {name}.damaged" in caplog.text


LINES: dict[str, Callable[[list[str]], list[str]]] = {
    "zeros": lambda lines: [*lines[:2], "\0" * len(lines[2]) + "\n", *lines[3:]],
    "a flipped bit": lambda lines: [*lines[:2], lines[2].replace("{", "[", 1), *lines[3:]],
    "no step": lambda lines: [lines[0], "{}\n", *lines[1:]],
    "the last lines lost": lambda lines: lines[:4],
    "empty": lambda lines: [],
    "half a line": lambda lines: [*lines, lines[-1][:40]],
    "no line break": lambda lines: [*lines[:-1], lines[-1][:-1]],
}


@pytest.mark.parametrize("change", LINES.values(), ids=LINES)
def test_damaged_lines_come_back_from_the_checkpoint(
    run: RunDirectory, cfg: Config, change: Callable[[list[str]], list[str]]
) -> None:
    whole = run.metrics_file.read_text()
    run.metrics_file.write_text("".join(change(whole.splitlines(keepends=True))))
    assert train(cfg, run.path).state == "finished"
    assert run.metrics_file.read_text() == whole


@pytest.mark.parametrize("content", [None, *SOME.values()], ids=["gone", *SOME])
def test_a_lost_summary_is_made_again(
    run: RunDirectory, finished: Path, cfg: Config, content: bytes | None
) -> None:
    run.mark(state="finished")
    if content is not None:
        run.summary_file.write_bytes(content)
    assert train(cfg, run.path).state == "finished"
    ours, before = run.read_summary(), RunDirectory(finished).read_summary()
    same = (
        "state",
        "verdict",
        "evidence",
        "knn_top1",
        "best_knn_top1",
        "untrained_knn_top1",
        "steps",
        "final",
    )
    assert {key: ours[key] for key in same} == {key: before[key] for key in same}
    assert (run.path / "summary.json.damaged").exists() == (content is not None)


def test_a_run_that_ended_without_summary_and_checkpoint_is_shown_and_not_trained_again(
    run: RunDirectory, cfg: Config
) -> None:
    run.mark(state="finished")
    shutil.rmtree(run.checkpoints)
    before = run.metrics_file.read_bytes()
    result = train(cfg, run.path)
    assert result.message == "already finished; warming-up"
    assert result.metrics["knn_top1"]
    assert run.metrics_file.read_bytes() == before


def test_a_collapsed_run_is_not_trained_further_for_its_summary(run: RunDirectory, cfg: Config) -> None:
    run.mark(state="collapsed")
    before = run.metrics_file.read_bytes()
    cfg = copy.deepcopy(cfg)
    cfg.trainer.on_collapse = "stop"
    assert train(cfg, run.path).state == "collapsed"
    assert run.read_summary()["state"] == "collapsed"
    assert run.metrics_file.read_bytes() == before


def test_a_finished_run_is_shown_whatever_its_status_says(
    run: RunDirectory, finished: Path, cfg: Config
) -> None:
    shutil.copy(finished / "summary.json", run.summary_file)
    run.status_file.write_bytes(b"")
    before = run.metrics_file.stat().st_mtime_ns
    assert train(cfg, run.path).message.startswith("already finished")
    assert run.metrics_file.stat().st_mtime_ns == before


def test_a_damaged_configuration_of_who_knows_which_run_is_refused(run: RunDirectory, cfg: Config) -> None:
    other = RunDirectory(run.path.with_name("other"))
    run.path.rename(other.path)
    shutil.rmtree(other.checkpoints)
    other.config_file.write_bytes(b"")
    before = {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"config\.yaml: not the complete configuration"):
        train(cfg, other.path)
    assert {path: path.read_bytes() for path in other.path.rglob("*") if path.is_file()} == before
