"""Two trained runs of the demo's size, one with the paper's patch embedding and one with the demo's stem."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino_exp.config.compose import compose
from dino_exp.training.run import train


def trained(path: Path, *overrides: str) -> Path:
    train(compose(["experiment=debug", "trainer.max_steps=2", *overrides]), path)
    return path


@pytest.fixture(scope="session")
def patch_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a transformer with a patch convolution, as in the paper, which other libraries have too."""
    return trained(tmp_path_factory.mktemp("patch") / "run", "backbone.stem=patch")


@pytest.fixture(scope="session")
def conv_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a transformer with a convolutional stem, which other libraries do not have."""
    return trained(tmp_path_factory.mktemp("conv") / "run")
