"""`report.py doctor RUN --rescue`: forks of a collapsed run from before its onset, and which recover."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dino_exp.config.sweep_runs import Run
from dino_exp.report.doctor import rescue
from dino_exp.report.report_command import main
from dino_exp.runs.kept_checkpoints import kept
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.training.attempt import Outcome, attempt
from tests.trained import trained

SMALL = ["experiment=debug", "trainer.batch_size=16", "data.train_size=64", "data.test_size=32"]
ONSET = 7


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 8 steps, of which 3 and 6 are kept, whose metrics say that it collapsed at step 7."""
    words = [*SMALL, "trainer.keep_checkpoints=every:3", "loss.centering=none"]
    run = trained(tmp_path_factory.mktemp("collapsed"), words)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] >= ONSET:
            line["verdict"] = "collapsed-one-hot"
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return run


@pytest.fixture
def run(collapsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(collapsed.parents[2] / "cache"))
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(collapsed, tmp_path / "outputs" / "debug" / collapsed.name))


def folder_of(run: Path) -> Path:
    return run.parent.with_name(f"debug_rescue_{run.name[-8:]}")


def here(launcher: str, settings: Mapping[str, Any], folder: Path, runs: Sequence[Run]) -> list[Outcome]:
    """Train in this process what the launcher would train in others."""
    assert (launcher, settings["runs_at_once"], settings["detach"]) == ("local", None, False)
    outcomes = [attempt(run.cfg, folder / run.run_id, folder.name) for run in runs]
    return [replace(each, message=each.message.partition(" ")[0].rstrip(",:;")) for each in outcomes]


def test_three_remedies_are_trained_from_before_the_onset(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rescue, "launch", here)
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["doctor", str(run), "--rescue"]) == 1
    said = capsys.readouterr().out
    assert "collapsed-one-hot since step 7" in said
    assert "from step 6, the newest checkpoint from before" in said
    # no other verdict is possible in 8 steps
    assert "None of 3 recovers; 3 did not collapse again, but have not learned yet." in said
    forks = sorted(folder_of(run).iterdir())
    configs = [(fork / "config.yaml").read_text() for fork in forks]
    assert len(configs) == 3
    for text in configs:
        assert "@6" in text
        assert "centering: mean" in text
        assert "on_collapse: stop" in text
    assert [RunDirectory(fork).read_status()["attempts"][0]["from_step"] for fork in forks] == [6, 6, 6]
    assert (run / "metrics.jsonl").read_bytes() == before


def test_forks_begin_before_the_mutual_information_was_halved(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        # the peak of the first step, before a dip, does not count; best.pt is of step 4
        values = {1: 0.68, 2: 0.05, 5: 0.09, 6: 0.02}
        line["teacher/mutual_information_share"] = values.get(line["step"], 0.2)
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    tried: list[Any] = []

    def launch(launcher: str, settings: Any, folder: Path, runs: Sequence[Run]) -> list[Outcome]:
        tried.extend(run.cfg.fork_from for run in runs)
        return [Outcome(run.run_id, "finished", 0, "healthy") for run in runs]

    monkeypatch.setattr(rescue, "launch", launch)
    assert main(["doctor", str(run), "--rescue"]) == 0
    said = capsys.readouterr().out
    assert "since step 7; by step 5 it had lost half of its mutual information." in said
    assert [str(each).rpartition("@")[2] for each in tried] == ["4"] * 3


def test_without_a_checkpoint_from_before_it_begins_again_and_says_so(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("best.pt", "previous.pt"):
        (run / "checkpoints" / name).unlink(missing_ok=True)
    for path in kept(run / "checkpoints").values():
        path.unlink()
    tried: list[Any] = []

    def launch(launcher: str, settings: Any, folder: Path, runs: Sequence[Run]) -> list[Outcome]:
        tried.extend(run.cfg.fork_from for run in runs)
        words = ("collapsed-constant", "healthy", "slow")
        ends = zip(runs, words, strict=True)
        return [Outcome(run.run_id, "finished", 0, word, {"knn_top1": 61.5}) for run, word in ends]

    monkeypatch.setattr(rescue, "launch", launch)
    assert main(["doctor", str(run), "--rescue"]) == 0
    said = capsys.readouterr().out
    assert "(they are only of 8), so each remedy is tried from step 0" in said
    assert "trainer.keep_checkpoints=every:3" in said
    assert tried == [None] * 3
    assert "1 of 3 recover; the best with loss.centering=mean optimizer.lr=0.004 (k-NN 61.5 %" in said


def test_only_a_collapsed_run_of_ours_is_rescued(
    collapsed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = shutil.copytree(collapsed, tmp_path / "healthy")
    text = (healthy / "metrics.jsonl").read_text()
    (healthy / "metrics.jsonl").write_text(text.replace("collapsed-one-hot", "healthy"))
    (tmp_path / "log.txt").write_text('{"train_loss": 9.1, "epoch": 0}\n')
    for path, words in (
        (healthy, "not collapsed (its verdict is healthy)"),
        (tmp_path / "log.txt", "of this project"),
    ):
        assert main(["doctor", str(path), "--rescue"]) == 2
        assert words in capsys.readouterr().err
