"""Random numbers that depend on the seed and a position alone, never on what was drawn before."""

from __future__ import annotations

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed PyTorch for one step on one process (stochastic depth draws from it).

    A resumed run so draws the same without a stored state, and no process repeats another's choices.
    """
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random generator of one image in one epoch; index −1 is for the order of the epoch."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, index + 1, epoch, 0]))
