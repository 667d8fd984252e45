"""Where the W&B tracker has its settings from: the configuration, W&B's variables, files and login."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from dino_exp.tracker.wandb import WandbTracker
from tests.tracker.test_wandb_tracker import _messages, login, only, read_back, run_info, tracker
from tests.tracker.wandb_server import WandbServer

__all__ = ["_messages", "login"]  # fixtures
pytestmark = pytest.mark.wandb


def test_variables_of_wandb_count_where_the_configuration_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mirrored(directory: Path, **settings: Any) -> dict[str, Any]:
        nothing: dict[str, Any] = dict(mode="offline", project=None, entity=None, timeout=120.0)
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
