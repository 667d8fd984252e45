"""The MLflow tracker: what arrives at a server that answers, fails, stalls or comes back; and a real one."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino_exp import cli
from dino_exp.config.compose import check
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory, read_metrics
from dino_exp.tracker import RunInfo, mlflow, mlflow_sync
from dino_exp.tracker.mlflow import MlflowTracker
from tests.tracker.mlflow_server import MlflowServer, wait_for

CONFIG = {
    "loss": {"teacher_temp": 0.04},
    "crops": {"global_scale": [0.4, 1.0]},
    "data": {"root": "x" * 2000, "val_root": None},
    "long": {f"key{number}": number for number in range(250)},
    "tracker": {"tracking_uri": "http://x"},
}
DEBUG = ("experiment=debug", "trainer.max_steps=2", "tracker=mlflow")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Send each record by itself, and try again at the next one."""
    caplog.set_level(logging.INFO, logger="dino_exp.tracker")
    monkeypatch.setattr(mlflow, "FLUSH_SECONDS", 0)
    monkeypatch.setattr(mlflow, "RETRY_SECONDS", 0)


def tracker(server: MlflowServer, **settings: Any) -> MlflowTracker:
    return MlflowTracker(**{"mode": "auto", "tracking_uri": server.url, **settings})


def run_info(directory: Path, resume_step: int = 0) -> RunInfo:
    return RunInfo(directory, "small-run", "my-sweep", CONFIG, "abc123", resume_step)


def write_lines(directory: Path, *steps: int) -> None:
    """Write metrics.jsonl as the training does before it calls the tracker."""
    lines = "".join(json.dumps({"step": step, "loss": step / 2}) + "\n" for step in steps)
    (directory / "metrics.jsonl").write_text(lines)


def steps_of(run: dict[str, Any], metric: str = "loss") -> list[int]:
    return [point["step"] for point in run["history"][metric]]


def test_a_run_arrives_with_config_metrics_images_summary_and_status(
    tmp_path: Path, mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 4), "red").save(tmp_path / "loss.png")
    mirror = tracker(mlflow_server, experiment="dino/λ", tags=["baseline", "team=imaging"])
    mirror.start(run_info(tmp_path))
    mirror.log({"loss": 8.25, "lr": 0.5, "knn_top1": None, "verdict": "slow", "step": 10}, step=10)
    mirror.log({"loss": math.nan, "grad_norm": math.inf, "odd:=name": 1, "verdict": "collapsed"}, step=20)
    mirror.image("curves", tmp_path / "loss.png", step=20)
    mirror.image("lost", tmp_path / "lost.png", step=20)
    mirror.alert("collapsed", "The teacher's entropy is ln K.")
    mirror.finish({"verdict": "collapsed", "knn_top1": 12.5, "environment": {"torch": "2"}}, exit_code=0)

    run = mlflow_server.only_run()
    assert mlflow_server.experiments == {"dino/λ": "1"}
    assert (run["info"]["run_name"], run["info"]["status"]) == ("small-run", "FINISHED")
    assert 0 < run["info"]["start_time"] <= run["info"]["end_time"]
    values = {key: [point["value"] for point in run["history"][key]] for key in run["history"]}
    assert values["loss"][0] == 8.25
    assert math.isnan(values["loss"][1])
    others = {"lr": [0.5], "grad_norm": [math.inf], "odd__name": [1], "summary/knn_top1": [12.5]}
    assert {key: value for key, value in values.items() if key != "loss"} == others
    assert steps_of(run) == [10, 20]
    assert steps_of(run, "summary/knn_top1") == [20]
    assert run["params"]["loss.teacher_temp"] == "0.04"
    assert run["params"]["crops.global_scale"] == "[0.4, 1.0]"
    assert (len(run["params"]), len(run["params"]["data.root"])) == (254, 500)
    assert not [key for key in run["params"] if key.startswith("tracker")]
    wanted = {"dino_exp.tracker_id": "abc123", "dino_exp.group": "my-sweep", "baseline": "true"}
    wanted |= {
        "team": "imaging",
        "verdict": "collapsed",
        "alert": "collapsed: The teacher's entropy is ln K.",
    }
    assert run["tags"].items() >= wanted.items()
    (name,) = mlflow_server.artifacts
    assert name == f"1/{run['info']['run_id']}/artifacts/curves/step_20.png"
    assert mlflow_server.artifacts[name] == (tmp_path / "loss.png").read_bytes()
    page = f"{mlflow_server.url}/#/experiments/1/runs/{run['info']['run_id']}"
    assert caplog.messages[0] == f"MLflow: {page}"
    assert [message[:22] for message in caplog.messages[1:]] == [f"MLflow: {tmp_path}"[:22]]
    assert mirror.complete


@pytest.mark.parametrize(
    ("state", "exit_code", "status"),
    [("finished", 0, "FINISHED"), ("failed", 1, "FAILED"), ("preempted", 143, "KILLED")],
)
def test_the_status_is_that_of_the_run(
    tmp_path: Path, mlflow_server: MlflowServer, state: str, exit_code: int, status: str
) -> None:
    mirror = tracker(mlflow_server)
    mirror.start(run_info(tmp_path))
    mirror.finish({"state": state}, exit_code)
    assert mlflow_server.only_run()["info"]["status"] == status
    assert mlflow_server.only_run()["tags"]["state"] == state


def test_a_resumed_run_continues_in_the_same_run_without_repeating_steps(
    tmp_path: Path, mlflow_server: MlflowServer
) -> None:
    mirror = tracker(mlflow_server)
    mirror.start(run_info(tmp_path))
    for step in (1, 2, 3, 4):
        mirror.log({"loss": step / 2}, step)
    mirror.finish({"state": "preempted"}, 143)
    write_lines(tmp_path, 1, 2)  # its checkpoint is that of step 2
    changed = RunInfo(
        tmp_path, "small-run", "my-sweep", CONFIG | {"loss": {"teacher_temp": 0.07}}, "abc123", 2
    )
    mirror = tracker(mlflow_server)
    mirror.start(changed)
    for step in (3, 4, 5, 6):
        mirror.log({"loss": step / 2}, step)
    mirror.finish({"state": "finished"}, 0)
    run = mlflow_server.only_run()
    assert [(point["step"], point["value"]) for point in run["history"]["loss"]] == [
        (step, step / 2) for step in (1, 2, 3, 4, 5, 6)
    ]
    assert run["statuses"] == ["RUNNING", "RUNNING", "KILLED", "RUNNING", "FINISHED"]
    assert run["params"]["loss.teacher_temp"] == "0.04", "a parameter cannot be changed"


def test_what_the_server_has_missed_arrives_when_it_answers_again(
    tmp_path: Path, mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = tracker(mlflow_server)
    mirror.start(run_info(tmp_path))
    mirror.log({"loss": 0.5}, 1)
    wait_for(lambda: mlflow_server.runs and mlflow_server.only_run()["history"])
    mlflow_server.behavior = "error"
    written = [1]
    for step in range(2, 3000):  # more than wait, or are kept
        written.append(step)
        mirror.log({"loss": step / 2}, step)
    write_lines(tmp_path, *written)
    wait_for(lambda: len(mlflow_server.requests) > 20)
    mlflow_server.behavior = "answer"
    mirror.log({"loss": 1500.0}, 3000)
    mirror.finish({}, 0)
    assert steps_of(mlflow_server.only_run()) == list(range(1, 3001))
    outage = [message for message in caplog.messages if "does not answer" in message]
    assert outage == [
        f"MLflow: {mlflow_server.url} does not answer (HTTP 500 (INTERNAL_ERROR: the database is locked)). "
        "The run continues, and sends what is missing when it does; if the run ends before: "
        f"python -m dino_exp.tracker.mlflow_sync {tmp_path}"
    ]


def test_a_silent_server_delays_the_end_only_by_the_timeout(
    tmp_path: Path, mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow_server.behavior = "silent"
    mirror = tracker(mlflow_server, timeout=0.5)
    mirror.start(run_info(tmp_path))
    for step in range(5000):
        mirror.log({"loss": 0.5}, step)
    mirror.finish({}, exit_code=0)
    slow, end = caplog.messages
    assert slow.startswith("MLflow: too slow, 2000 records are waiting; new ones are dropped.")
    assert end.startswith(f"MLflow: {mlflow_server.url} does not answer (no answer within 0.5 s). ")
    assert not mirror.complete


@pytest.mark.parametrize(
    ("behavior", "reason"),
    [("forbid", "HTTP 403 (PERMISSION_DENIED: Permission denied)"), ("redirect", "HTTP 302")],
)
def test_an_answer_that_will_not_change_switches_it_off_with_one_line(
    tmp_path: Path, mlflow_server: MlflowServer, caplog: pytest.LogCaptureFixture, behavior: str, reason: str
) -> None:
    mlflow_server.behavior = behavior
    mirror = tracker(mlflow_server)
    mirror.start(run_info(tmp_path))
    wait_for(lambda: caplog.messages)
    for step in range(5):
        mirror.log({"loss": 0.5}, step)
    mirror.finish({}, exit_code=0)
    assert caplog.messages == [
        f"MLflow: off, because of RefusedError: {reason}. metrics.jsonl in the run directory has everything."
    ]
    assert len(mlflow_server.requests) == 1


def test_a_login_is_for_the_server_of_the_environment_alone(
    tmp_path: Path, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration from somebody else could name another server."""

    def sent(**settings: Any) -> set[str | None]:
        mlflow_server.authorizations.clear()
        mirror = MlflowTracker(mode="auto", **settings)
        mirror.start(run_info(tmp_path))
        mirror.finish({}, 0)
        assert mirror.complete
        return mlflow_server.authorizations

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert sent(tracking_uri=mlflow_server.url) == {None}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    assert sent() == sent(tracking_uri=mlflow_server.url) == {"Basic YWRhOnNlY3JldA=="}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    assert sent() == {"Bearer t0ken"}
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url.replace("//", "//ada:secret@"))
    assert sent() == {"Basic YWRhOnNlY3JldA=="}


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("http://ada:secret@host:5000", "http://host:5000: has a user or password in it, which would be"),
        (
            "sqlite:///mlflow.db",
            "sqlite:///mlflow.db: not the address of a server, e.g. http://localhost:5000",
        ),
        ("./mlruns", "./mlruns: not the address of a server"),
        ("http://[host", "http://[host: not the address of a server"),
        ("http://host:port", "http://host:port: not the address of a server"),
    ],
)
def test_an_address_that_is_none_is_refused_before_anything_is_created(address: str, problem: str) -> None:
    (error,) = check([*DEBUG, f"tracker.tracking_uri='{address}'"]).errors
    assert error.startswith(f"tracker.tracking_uri = {problem}")
    assert "secret" not in error
    with pytest.raises(UserError, match=r"not the address|has a user or password"):
        MlflowTracker(mode="auto", tracking_uri=address)


def test_without_an_address_nothing_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert cli.main([*DEBUG]) == 2
    assert capsys.readouterr().err.startswith("tracker=mlflow: no server is named; set MLFLOW_TRACKING_URI")
    assert not (tmp_path / "outputs").exists()


def test_a_run_without_its_server_is_the_same_and_can_be_sent_later(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mlflow_server: MlflowServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert cli.main([*DEBUG, "tracker.tracking_uri=http://127.0.0.1:1"]) == 0
    (run,) = (tmp_path / "outputs" / "debug").iterdir()
    assert capsys.readouterr().out.count("http://127.0.0.1:1 does not answer (") == 1
    assert RunDirectory(run).read_status()["state"] == "finished"
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2]

    assert mlflow_sync.main([str(run)]) == 1
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("http://127.0.0.1:1", mlflow_server.url))
    for _ in range(2):
        assert mlflow_sync.main([str(run)]) == 0
        mirrored = mlflow_server.only_run()
        assert steps_of(mirrored) == [1, 2]
        assert [point["value"] for point in mirrored["history"]["knn_top1"]] == [
            line["knn_top1"] for line in lines if "knn_top1" in line
        ]
    assert mirrored["info"]["status"] == "FINISHED"
    assert mirrored["info"]["run_name"] == run.name
    assert mirrored["tags"]["dino_exp.tracker_id"] == RunDirectory(run).read_status()["tracker_id"]
    capsys.readouterr()
    assert mlflow_sync.main([str(tmp_path / "nothing")]) == 2
    assert mlflow_sync.main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.fixture
def real_server(tmp_path: Path) -> Iterator[str]:
    """Start `mlflow server` in an empty folder, and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "server"
    folder.mkdir()
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: b"Application startup complete" in (folder / "log").read_bytes(), tries=4000)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.mlflow
@pytest.mark.skipif(not shutil.which("mlflow"), reason="needs the program mlflow")
def test_a_real_server_has_the_run(tmp_path: Path, real_server: str) -> None:
    def ask(path: str, **body: Any) -> dict[str, Any]:
        content = json.dumps(body).encode() if body else None
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{real_server}/api/2.0/{path}", content, headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    Image.new("RGB", (8, 4), "red").save(tmp_path / "loss.png")
    for first, last, state in ((1, 4, "preempted"), (3, 6, "finished")):
        mirror = MlflowTracker(
            mode="auto", tracking_uri=real_server, experiment="dino/λ", tags=["team=imaging"]
        )
        write_lines(tmp_path, *range(1, first))
        mirror.start(run_info(tmp_path, resume_step=first - 1))
        for step in range(first, last + 1):
            mirror.log({"loss": step / 2, "teacher/entropy": math.nan, "verdict": "slow"}, step)
        mirror.image("curves", tmp_path / "loss.png", last)
        mirror.finish({"state": state, "knn_top1": 12.5}, 0 if state == "finished" else 143)
        assert mirror.complete
        found = ask("mlflow/experiments/get-by-name?experiment_name=dino/%CE%BB")["experiment"][
            "experiment_id"
        ]
        (run,) = ask("mlflow/runs/search", experiment_ids=[found])["runs"]
        assert run["info"]["status"] == ("FINISHED" if state == "finished" else "KILLED")
    name = run["info"]["run_id"]
    history = ask(f"mlflow/metrics/get-history?run_id={name}&metric_key=loss")["metrics"]
    assert [(point["step"], point["value"]) for point in history] == [
        (step, step / 2) for step in (1, 2, 3, 4, 5, 6)
    ]
    assert len(run["data"]["params"]) == 254
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    wanted = {"dino_exp.group": "my-sweep", "team": "imaging", "verdict": "slow", "state": "finished"}
    assert tags.items() >= wanted.items()
    files = ask(f"mlflow/artifacts/list?run_id={name}&path=curves")["files"]
    assert [file["path"] for file in files] == ["curves/step_4.png", "curves/step_6.png"]
