"""Local servers of W&B and MLflow, and isolation from the settings of the person who runs the tests."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracker.mlflow_server import MlflowServer
from tests.tracker.wandb_server import WandbServer


@pytest.fixture
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    yield server
    server.close()


@pytest.fixture
def mlflow_server() -> Iterator[MlflowServer]:
    server = MlflowServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def wandb_home(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Hide login, settings and variables of the person who runs the tests.

    Temporary files are each test's own: a run removes those of its id, which tests at the same time share.
    """
    temporary = str(tmp_path_factory.mktemp("temporary"))
    monkeypatch.setattr(tempfile, "tempdir", temporary)
    monkeypatch.setenv("TMPDIR", temporary)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return home
