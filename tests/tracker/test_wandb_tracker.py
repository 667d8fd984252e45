"""The W&B tracker with the real wandb: offline files, and a server that answers, fails or stalls."""

import json
import logging
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dino_exp.tracker import RunInfo, wandb_process
from dino_exp.tracker.wandb import WandbTracker
from tests.tracker.wandb_server import WandbServer

pytestmark = pytest.mark.wandb
ROOT = Path(__file__).parents[2]
CONFIG = {"loss": {"teacher_temp": 0.04}, "crops": {"global_scale": [0.4, 1.0]}}


@pytest.fixture(autouse=True)
def _messages(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="dino_exp.tracker")


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch, wandb_server: WandbServer) -> WandbServer:
    monkeypatch.setenv("WANDB_BASE_URL", wandb_server.url)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    return wandb_server


def tracker(mode: str = "auto", timeout: float = 120.0) -> WandbTracker:
    return WandbTracker(mode=mode, project="p", entity=None, timeout=timeout)


def run_info(directory: Path, tracker_id: str = "abc123", resume_step: int = 0) -> RunInfo:
    return RunInfo(directory, "small-run", "my-sweep", CONFIG, tracker_id, resume_step)


def wandb_cli(*arguments: str) -> str:
    command = [sys.executable, "-m", "wandb", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout + done.stderr


def read_back(segment: Path) -> list[dict[str, Any]]:
    """Return the records of a run's file, as `wandb leet inspect` prints them."""
    lines = wandb_cli("leet", "inspect", "--json", str(segment)).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]


def only(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [record[kind] for record in records if record["type"] == kind]
    return found


def segments(directory: Path, kind: str = "offline-run") -> list[Path]:
    return sorted((directory / "wandb").glob(f"{kind}-*"))


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


TRAINING = """
import logging, sys
from pathlib import Path
from dino_exp.tracker import RunInfo
from dino_exp.tracker.wandb import WandbTracker

logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
directory, timeout, crash = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "crash"
tracker = WandbTracker(mode="auto", project="p", entity=None, timeout=timeout)
tracker.start(RunInfo(directory, "name", None, {}, directory.name))  # each its own id
for step in range(1, 4):
    tracker.log({"loss": step / 2}, step)
if crash:
    while not list(directory.glob("wandb/offline-run-*")):
        pass
    raise RuntimeError("out of memory")
tracker.finish({"verdict": "healthy"}, 0)
assert "wandb" not in sys.modules and sys.exit.__module__ == "sys"
print("trained")
"""


def train(directory: Path, timeout: float, how: str = "well") -> subprocess.Popen[str]:
    directory.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(directory), str(timeout), how],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_training_without_a_working_server_ends_with_an_offline_file(
    tmp_path: Path, login: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = WandbServer()
    failing.behavior = "error"
    login.behavior = "silent"
    addresses = {"silent": login.url, "error": failing.url, "refused": "http://127.0.0.1:1"}
    trainings = {}
    for how, address in addresses.items():
        monkeypatch.setenv("WANDB_BASE_URL", address)
        trainings[how] = train(tmp_path / how, timeout=120)
    for how, training in trainings.items():
        output, log = training.communicate()
        assert (training.returncode, output) == (0, "trained\n")
        start, _, end = log.strip().partition("(")
        assert start == "WARNING W&B: offline, as online failed "
        assert end.partition(")")[2] == f". Upload later: wandb sync {tmp_path / how / 'wandb'}"
        assert segments(tmp_path / how, "run") == []
        (segment,) = segments(tmp_path / how)
        records = read_back(segment)
        assert [(row["step"], row["loss"]) for row in rows(records)] == [(1, 0.5), (2, 1.0), (3, 1.5)]
        assert only(records, "exit")["exit_code"] == 0
    failing.close()


def test_a_server_that_stops_answering_delays_the_end_only_by_the_timeout(
    tmp_path: Path, login: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = tracker(timeout=15)
    mirror.start(run_info(tmp_path))
    wait_for(lambda: "abc123" in login.runs)
    login.behavior = "silent"
    mirror.log({"loss": 1.5}, step=1)
    mirror.finish({"verdict": "healthy"}, exit_code=0)
    (segment,) = segments(tmp_path, "run")
    command = f"wandb sync --include-online {segment}"
    assert caplog.messages[1:] == [
        "W&B: the upload was stopped after 15 s. "
        f"metrics.jsonl in the run directory has everything. Upload the rest: {command}"
    ]
    assert rows(read_back(segment)) == [{"step": 1, "loss": 1.5}]
    login.behavior = "answer"
    wandb_cli(*shlex.split(command)[1:])
    assert [row["loss"] for row in login.history["abc123"].values()] == [1.5]
    assert login.exit_codes == {"abc123": 0}


def test_a_crashed_training_is_not_shown_as_finished(tmp_path: Path) -> None:
    training = train(tmp_path / "run", timeout=60, how="crash")
    output, log = training.communicate()
    assert (training.returncode, output) == (1, "")
    assert log.splitlines()[-1] == "RuntimeError: out of memory"
    (segment,) = segments(tmp_path / "run")
    records = wait_for(lambda: ended(read_back(segment)))
    assert only(records, "exit")["exit_code"] == 1


def ended(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return records if any(record["type"] == "exit" for record in records) else []


def wait_for(condition: Any) -> Any:
    """Wait for a true value of `condition()` and return it; try 1200 times."""
    for _ in range(1200):
        if found := condition():
            return found
        threading.Event().wait(0.05)
    raise AssertionError("the condition never became true")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_the_process_survives_the_signals_of_a_scheduler_and_may_be_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = tmp_path / "wandb/offline-run-1-abc123/run-abc123.wandb"  # breaks `wandb sync`
    empty.parent.mkdir(parents=True)
    empty.write_bytes(bytes(wandb_process.EMPTY_BYTES))
    mirror = tracker("offline")
    mirror.start(run_info(tmp_path))
    wait_for(lambda: caplog.records)
    (process,) = children(os.getpid())
    for pid in (process, *children(process)):  # our process and wandb-core, as in a preemption
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    mirror.log({"loss": 0.5}, step=1)
    mirror.finish({"state": "preempted"}, exit_code=143)
    written = segments(tmp_path)  # the killed one's only if it was not empty yet
    assert empty.parent not in written
    assert all((path / empty.name).stat().st_size > wandb_process.EMPTY_BYTES for path in written)
    records = read_back(written[-1])
    assert rows(records) == [{"step": 1, "loss": 0.5}]
    assert only(records, "run")["run_id"] == "abc123"
    assert only(records, "exit")["exit_code"] == 143
    assert any(record["type"] == "preempting" for record in records)
    assert len(caplog.records) == 1

    caplog.clear()
    mirror.start(run_info(tmp_path, "killed"))
    wait_for(lambda: caplog.records)
    os.kill(children(os.getpid())[0], signal.SIGKILL)
    mirror.finish({}, exit_code=0)
    assert caplog.messages[-1] == (
        "W&B: the mirror ended early (its process was killed). "
        f"metrics.jsonl in the run directory has everything. Upload the rest: wandb sync {tmp_path / 'wandb'}"
    )


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_stalled_process_delays_neither_the_training_nor_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = tracker("offline", timeout=1)
    mirror.start(run_info(tmp_path))
    wait_for(lambda: caplog.records)
    (process,) = children(os.getpid())
    os.kill(process, signal.SIGSTOP)
    metrics = {f"metric {index}": 0.5 for index in range(60)}
    for step in range(5000):
        mirror.log(metrics, step)
    mirror.finish({}, exit_code=0)
    slow, end = caplog.messages[1:]
    assert slow.startswith("W&B: too slow, 2000 records are waiting; new ones are dropped.")
    assert end.startswith(("W&B: the upload was stopped after 1 s.", "W&B: the mirror ended"))
    assert not Path(f"/proc/{process}").exists()


def children(parent: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            if "wandb" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def test_an_id_that_is_a_path_turns_wandb_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirror = tracker()
    mirror.start(run_info(tmp_path, "../../victim/run-*"))
    mirror.finish({}, exit_code=0)
    assert caplog.messages[0].startswith("W&B: off, because the run's tracker_id in status.json is not one")
    assert not (tmp_path / "wandb").exists()


def test_an_unwritable_directory_turns_wandb_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb").write_text("in the way")
    mirror = tracker()
    mirror.start(run_info(tmp_path))
    mirror.log({"loss": 0.5}, step=1)
    mirror.finish({}, exit_code=0)
    (message,) = caplog.messages
    assert message.startswith("W&B: off, because of FileExistsError:")
