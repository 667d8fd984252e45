"""The process of the W&B tracker: servers that fail or stall, a crash, signals, and a stall of its own."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import ROOT, until
from tests.tracker.wandb_runs import only, read_back, rows, run_info, segments, tracker, wandb_cli
from tests.tracker.wandb_server import WandbServer

pytestmark = pytest.mark.wandb

TRAINING = """
import logging, sys
from pathlib import Path
from dino_exp.tracker import RunInfo
from dino_exp.tracker.wandb import WandbTracker

logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
directory, timeout, crash = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "crash"
tracker = WandbTracker(mode="auto", project="p", entity=None, timeout=timeout)
tracker.start(RunInfo(directory, "name", None, {}, "abc123"))
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


def children(parent: int) -> list[int]:
    """Return the processes of wandb that a process has started."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            if "wandb" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


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
        trainings[how] = train(tmp_path / how, timeout=45)
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
    mirror = tracker(timeout=8)
    mirror.start(run_info(tmp_path))
    until(lambda: "abc123" in login.runs, "the upload")
    login.behavior = "silent"
    mirror.log({"loss": 1.5}, step=1)
    mirror.finish({"verdict": "healthy"}, exit_code=0)
    (segment,) = segments(tmp_path, "run")
    command = f"wandb sync --include-online {segment}"
    assert caplog.messages[1:] == [
        "W&B: the upload was stopped after 8 s. "
        f"metrics.jsonl in the run directory has everything. Upload the rest: {command}"
    ]
    assert rows(read_back(segment)) == [{"step": 1, "loss": 1.5}]
    login.behavior = "answer"
    wandb_cli(*shlex.split(command)[1:])
    assert [row["loss"] for row in login.history["abc123"].values()] == [1.5]
    assert login.exit_codes == {"abc123": 0}


def test_a_crashed_training_is_not_shown_as_finished(tmp_path: Path) -> None:
    training = train(tmp_path / "run", timeout=10, how="crash")
    output, log = training.communicate()
    assert (training.returncode, output) == (1, "")
    assert log.splitlines()[-1] == "RuntimeError: out of memory"
    (segment,) = segments(tmp_path / "run")
    ends = until(lambda: [each for each in read_back(segment) if each["type"] == "exit"], "the exit record")
    assert only(ends, "exit")["exit_code"] == 1


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_the_process_survives_the_signals_of_a_scheduler_and_may_be_killed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = tracker("offline")
    mirror.start(run_info(tmp_path))
    until(lambda: caplog.records, "the start")
    (process,) = children(os.getpid())
    for pid in (process, *children(process)):  # our process and wandb-core, as in a preemption
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    mirror.log({"loss": 0.5}, step=1)
    mirror.finish({"state": "preempted"}, exit_code=143)
    # only one: the first segment, still empty, was removed, because `wandb sync` would fail with it
    (segment,) = segments(tmp_path)
    records = read_back(segment)
    assert rows(records) == [{"step": 1, "loss": 0.5}]
    assert only(records, "run")["run_id"] == "abc123"
    assert only(records, "exit")["exit_code"] == 143
    assert any(record["type"] == "preempting" for record in records)
    assert len(caplog.records) == 1

    caplog.clear()
    mirror.start(run_info(tmp_path, "killed"))
    until(lambda: caplog.records, "the start")
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
    until(lambda: caplog.records, "the start")
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
