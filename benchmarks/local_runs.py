"""Runs of a study on this machine's queue, which can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from dino_exp.config.launcher_settings import LocalSettings
from dino_exp.console import Console
from launchers.submission import Wanted, submit
from launchers.watch import wait


def train_here(folder: Path, runs: Sequence[Wanted], console: Console) -> None:
    """Submit those runs that are not finished, and wait for them."""
    settings = OmegaConf.to_container(OmegaConf.structured(LocalSettings))
    assert isinstance(settings, dict)
    submit(folder, "local", {str(key): value for key, value in settings.items()}, runs)
    wait(folder, {run.name for run in runs}, console)
