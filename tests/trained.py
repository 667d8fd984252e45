"""A training for the tests of a module, which share its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from dino_exp import train


def trained(folder: Path, overrides: Sequence[str]) -> Path:
    """Train in a folder, without plots, and return the directory of the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("dino_exp.training.run.draw", lambda *_: {})
        patch.setattr("dino_exp.training.run.draw_crops", lambda *_: None)
        return folder / train(list(overrides)).directory
