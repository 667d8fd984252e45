"""Random numbers that depend on the seed and a position alone, never on what was drawn before."""

from __future__ import annotations

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what a step draws (stochastic depth) depend on these alone.

    So a resume draws the same without a stored state, on any number of processes, and no process repeats
    another's choices.
    """
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one image in one epoch; index −1 is for the order of the epoch."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, index + 1, epoch, 0]))
