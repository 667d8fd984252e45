"""Fixtures: a cluster without SLURM, and runs without training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launchers import local, watch, worker
from tests.launchers.doubles import HERE, Cluster, Played, install


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory, with wide output and no SLURM variables."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SUBMITIT_")):
            monkeypatch.delenv(name)
    return folder


@pytest.fixture
def cluster(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Put fake SLURM commands on the PATH, and no other commands, because the real ones may be installed."""
    cluster = Cluster(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(cluster.folder))
    return cluster


@pytest.fixture
def played(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """Have runs do what the `do` files in their folders say, with short polling intervals.

    Queues that still run at the end are stopped.
    """
    queues: list[subprocess.Popen[bytes]] = []

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        queues.append(subprocess.Popen(*arguments, **options))
        return queues[-1]

    monkeypatch.setattr(local, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": start}))
    install(HERE / "fake_python.py", tmp_path / "python")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.02)
    yield Played(here / "sweep")
    for queue in queues:
        queue.terminate()
        queue.wait(timeout=30)
