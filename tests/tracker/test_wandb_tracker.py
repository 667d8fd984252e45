"""The W&B tracker with the real wandb: offline files, a server that answers, variables and logins."""

import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino_exp.tracker.wandb import WandbTracker
from tests.tracker.wandb_runs import (
    CONFIG,
    only,
    read_back,
    rows,
    run_info,
    segments,
    tracker,
    wandb_cli,
)
from tests.tracker.wandb_server import WandbServer

pytestmark = pytest.mark.wandb


def test_an_offline_file_has_everything_that_was_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "loss.png")
    mirror = tracker()
    mirror.start(run_info(tmp_path))
    fork = multiprocessing.get_context("fork")  # like a data loading worker that outlives the run
    may_end = fork.Event()
    worker = fork.Process(target=may_end.wait)
    worker.start()
    mirror.log({"loss": 8.317766, "lr": 0.0005, "knn_top1": None}, step=10)
    mirror.log({"loss": float("nan"), "verdict": "collapsed"}, step=20)
    mirror.image("plots/loss", tmp_path / "loss.png", step=20)
    mirror.image("plots/missing", tmp_path / "missing.png", step=20)
    mirror.alert("collapse " * 10, "The teacher's entropy is ln K.")
    mirror.log({"loss": 7.5}, step=30)
    mirror.finish({"verdict": "collapsed", "environment": {"torch": "2.11"}}, exit_code=3)
    assert worker.is_alive()
    may_end.set()
    worker.join()

    (segment,) = segments(tmp_path)
    records = read_back(segment)
    run = only(records, "run")
    assert (run["run_id"], run["project"], run["run_group"]) == ("abc123", "p", "my-sweep")
    assert run["display_name"] == "small-run"
    assert {key: run["config"]["update"][key] for key in CONFIG} == CONFIG
    first, second, image, last = rows(records)
    assert first == {"step": 10, "loss": 8.317766, "lr": 0.0005}
    assert second == {"step": 20, "loss": "NaN", "verdict": "collapsed"}
    assert (image["step"], image["plots/loss.width"], image["plots/loss.height"]) == (20, 8, 4)
    assert (segment / "files" / image["plots/loss.path"]).is_file()
    assert last == {"step": 30, "loss": 7.5}
    assert only(records, "alert")["title"] == ("collapse " * 10)[:63]
    assert any(
        record.get("metric", {}).get("glob_name") == "*" and record["metric"]["step_metric"] == "step"
        for record in records
    )
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert summary["verdict"] == "collapsed"
    assert summary["environment"] == {"torch": "2.11"}
    assert only(records, "exit")["exit_code"] == 3
    # neither code nor a list of packages
    assert [path.name for path in segment.glob("files/*") if path.name != "media"] == []
    assert caplog.messages == [
        f"W&B: offline (no W&B login was found). Upload later: wandb sync {tmp_path / 'wandb'}"
    ]


def test_resumed_offline_segments_join_when_uploaded(tmp_path: Path, login: WandbServer) -> None:
    mirror = tracker("offline")
    for first_step, exit_code in ((1, 1), (3, 0)):  # preempted after step 4, resumed from step 2
        mirror.start(run_info(tmp_path, "joined", resume_step=first_step - 1))
        for step in range(first_step, first_step + 4):
            mirror.log({"loss": 10.0 * first_step + step}, step)
        mirror.finish({}, exit_code)
    assert len(segments(tmp_path)) == 2
    for segment in segments(tmp_path):
        run = only(read_back(segment), "run")
        assert (run["run_id"], run["resume"]) == ("joined", True)

    wandb_cli("sync", str(tmp_path / "wandb"))
    joined = [login.history["joined"][line] for line in sorted(login.history["joined"])]
    assert [row["step"] for row in joined] == [1, 2, 3, 4, 3, 4, 5, 6]
    assert [row["loss"] for row in joined] == [11, 12, 13, 14, 33, 34, 35, 36]
    assert login.exit_codes == {"joined": 0}


def test_online_run_arrives_with_its_exit_code(
    tmp_path: Path, login: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = tracker()
    mirror.start(run_info(tmp_path))
    mirror.log({"loss": 1.5}, step=1)
    mirror.alert("collapse", "soon")
    mirror.finish({"verdict": "healthy"}, exit_code=7)
    assert [(row["step"], row["loss"]) for row in login.history["abc123"].values()] == [(1, 1.5)]
    assert login.runs["abc123"]["groupName"] == "my-sweep"
    assert login.exit_codes == {"abc123": 7}
    assert login.alerts == ["collapse"]
    assert json.loads(login.uploads["wandb-summary.json"])["verdict"] == "healthy"
    assert caplog.messages == [f"W&B: online, {login.url}/team/p/runs/abc123"]


def test_variables_of_wandb_count_where_the_configuration_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mirrored(directory: Path, **settings: Any) -> dict[str, Any]:
        nothing: dict[str, Any] = dict(mode="offline", project=None, entity=None, timeout=20.0)
        directory.mkdir()
        mirror = WandbTracker(**nothing | settings)
        mirror.start(run_info(directory))
        mirror.finish({}, 0)
        (segment,) = (Path(os.environ.get("WANDB_DIR", directory)) / "wandb").glob("offline-run-*-abc123")
        keys = ("project", "entity", "display_name", "run_group", "tags", "notes")
        run = only(read_back(segment), "run")
        return {key: run[key] for key in keys if key in run}

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "dino-exp-wandb-abc123-of-a-killed-run").mkdir()
    (tmp_path / "dino-exp-wandb-another-runs").mkdir()
    ours = {"project": "dino-exp", "display_name": "small-run", "run_group": "my-sweep"}
    assert mirrored(tmp_path / "unset") == ours
    variables = ("PROJECT", "ENTITY", "NAME", "RUN_GROUP", "NOTES")
    for variable in variables:
        monkeypatch.setenv(f"WANDB_{variable}", f"my {variable}")
    monkeypatch.setenv("WANDB_TAGS", "one,two")
    keys = ("project", "entity", "display_name", "run_group", "notes")
    theirs = {key: f"my {variable}" for key, variable in zip(keys, variables, strict=True)}
    assert mirrored(tmp_path / "set") == theirs | {"tags": ["one", "two"]}
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    typed = {"project": "p", "entity": "e", "tags": ["a b", "c"], "notes": "why"}
    assert mirrored(tmp_path / "typed", **typed) == theirs | typed
    folder = tmp_path / "elsewhere" / "wandb"
    assert caplog.messages[-1].endswith(f"Upload later: wandb sync {folder}/offline-run-*-abc123")
    assert [path.name for path in tmp_path.glob("*wandb*")] == ["dino-exp-wandb-another-runs"]


def test_an_id_that_is_a_path_turns_wandb_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = tracker()
    mirror.start(run_info(tmp_path, "../../victim/run-*"))
    mirror.finish({}, exit_code=0)
    assert caplog.messages[0].startswith("W&B: off, because the run's tracker_id in status.json is not one")
    assert not (tmp_path / "wandb").exists()


def test_auto_follows_wandb_settings_and_login(
    tmp_path: Path, login: WandbServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def message(mode: str) -> str:
        caplog.clear()
        mirror = tracker(mode)
        mirror.start(run_info(tmp_path))
        mirror.finish({}, 0)
        return " ".join(message.split(" Upload")[0] for message in caplog.messages)

    monkeypatch.setenv("WANDB_MODE", "offline")
    assert message("auto") == "W&B: offline (WANDB_MODE or the W&B settings say so)."
    assert message("online") == f"W&B: online, {login.url}/team/p/runs/abc123"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert message("auto") == "W&B: disabled (WANDB_MODE or the W&B settings say so)."
    assert message("disabled") == ""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert message("auto").startswith(
        "W&B: offline, as online failed (AuthenticationError: WANDB_API_KEY invalid:"
    )
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = Path(os.environ["HOME"]) / ".netrc"
    netrc.write_text(f"machine {login.url.removeprefix('http://')}\n login user\n password {'b' * 40}\n")
    assert message("auto") == f"W&B: online, {login.url}/team/p/runs/abc123"


def test_an_unwritable_directory_turns_wandb_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb").write_text("in the way")
    mirror = tracker()
    mirror.start(run_info(tmp_path))
    mirror.log({"loss": 0.5}, step=1)
    mirror.finish({}, exit_code=0)
    (message,) = caplog.messages
    assert message.startswith("W&B: off, because of FileExistsError:")
