"""Two runs of the demo's size: one whose transformer others have too, and the demo's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_exp.config.compose import compose
from dino_exp.train.run import train


def trained(path: Path, *overrides: str) -> Path:
    train(compose(["experiment=debug", "trainer.max_steps=2", *overrides]), path)
    return path


@pytest.fixture(scope="session")
def patch_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer with a patch convolution, as in the paper."""
    return trained(tmp_path_factory.mktemp("patch") / "run", "backbone.stem=patch")


@pytest.fixture(scope="session")
def conv_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer with a convolutional stem."""
    return trained(tmp_path_factory.mktemp("conv") / "run")
