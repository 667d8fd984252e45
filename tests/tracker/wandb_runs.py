"""Runs that the W&B tracker mirrors, and what its files have."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dino_exp.tracker import RunInfo
from dino_exp.tracker.wandb import WandbTracker

CONFIG = {"loss": {"teacher_temp": 0.04}, "crops": {"global_scale": [0.4, 1.0]}}


def tracker(mode: str = "auto", timeout: float = 20.0) -> WandbTracker:
    """Return a tracker of the project `p`."""
    return WandbTracker(mode=mode, project="p", entity=None, timeout=timeout)


def run_info(directory: Path, tracker_id: str = "abc123", resume_step: int = 0) -> RunInfo:
    """Return what the tracker must know of a run."""
    return RunInfo(directory, "small-run", "my-sweep", CONFIG, tracker_id, resume_step)


def wandb_cli(*arguments: str) -> str:
    """Return what a command of `wandb` prints."""
    command = [sys.executable, "-m", "wandb", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout + done.stderr


def read_back(segment: Path) -> list[dict[str, Any]]:
    """Return the records of a run's file, as `wandb leet inspect` prints them."""
    lines = wandb_cli("leet", "inspect", "--json", str(segment)).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def rows(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the metrics of the records, without those of wandb itself."""
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    return [{key: value for key, value in item.items() if not key.startswith("_")} for item in items]


def only(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the only record of a kind."""
    (found,) = [record[kind] for record in records if record["type"] == kind]
    return found


def segments(directory: Path, kind: str = "offline-run") -> list[Path]:
    """Return the folders of a run's parts, each from a start to its end."""
    return sorted((directory / "wandb").glob(f"{kind}-*"))
