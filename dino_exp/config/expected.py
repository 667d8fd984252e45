"""What an experiment is known to reach, and how a run compares with it.

`expected` is part of an experiment's file. It stays in the configuration of a run only if the run is that
experiment, unchanged but for the seed and what cannot change a result (`settle`); whoever shows a run
therefore only looks whether there are numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dino_exp.config.identity import differing_keys
from dino_exp.config.messages import show
from dino_exp.config.schema import ExpectedConfig
from dino_exp.runs.run_files import number

OWN = frozenset({"trainer.seed"})
"""Keys in which a run may differ from its experiment."""
KNN = ("k", "temperature", "bank_size", "query_size", "crop_ratio")
"""Keys of `eval` on which k-NN depends, which are no part of an identity."""


class Band(NamedTuple):
    """What is expected of k-NN top-1 at one place of a run, in percent."""

    share: float
    """Of the run's steps."""
    low: float
    high: float


def bands(expected: Any) -> list[Band]:
    """Return the bands of `expected`, typed or of a stored configuration; none if it is empty or damaged."""
    try:
        spread = number(expected["spread"])
        points = [(number(share), number(knn)) for share, knn in expected["knn_top1"]]
    except (KeyError, TypeError, ValueError):
        return []
    known = [(share, knn) for share, knn in points if share is not None and knn is not None]
    if spread is None or len(known) < len(points):
        return []
    return [Band(share, knn - spread, knn + spread) for share, knn in known]


def band_at(expected: Any, share: float) -> Band | None:
    """Return the band at a share of the steps, between two of them a line; None before the first."""
    known = bands(expected)
    if not known or share < known[0].share:
        return None
    shares, lows, highs = zip(*known, strict=True)
    return Band(share, float(np.interp(share, shares, lows)), float(np.interp(share, shares, highs)))


def comparison(expected: Any, step: int, total_steps: int, knn: float | None) -> str:
    """Return a sentence that compares the k-NN of a step with what is expected; empty without either."""
    band = band_at(expected, step / total_steps) if total_steps else None
    known = number(knn)
    if band is None or known is None:
        return ""
    word = "below" if known < band.low else "above" if known > band.high else "within"
    place = "at the end" if step == total_steps else f"at step {step:,}"
    return (
        f"k-NN {known:.1f} % is {word} the {band.low:.1f} to {band.high:.1f} % of "
        f"experiment={expected['experiment']} {place}"
    )


def settle(cfg: Any, experiment: Any) -> None:
    """Remove `expected` from a valid configuration unless it is that of its experiment.

    experiment: the configuration of `expected.experiment` by itself; None if there is no such experiment.
    """
    try:
        same = (
            experiment is not None
            and set(differing_keys(cfg, experiment)) <= OWN
            and all(cfg.eval[key] == experiment.eval[key] for key in KNN)
        )
    except OmegaConfBaseException:  # a key of the experiment has to be given, such as data.root
        same = False
    if not same:
        cfg.expected = OmegaConf.structured(ExpectedConfig)


def problems(cfg: Any) -> Iterator[str]:
    """Yield errors of what an experiment's file expects."""
    points: Any = OmegaConf.to_container(cfg.expected.knn_top1)
    pairs = [each for each in points if isinstance(each, list) and len(each) == 2]
    pairs = [each for each in pairs if all(number(value) is not None for value in each)]
    shares = [share for share, _ in pairs]
    growing = shares == sorted(set(shares)) and all(0 < share <= 1 for share in shares)
    if len(pairs) < len(points) or not growing:
        yield (
            f"expected.knn_top1 = {show(points)}: give pairs of a share of the steps, growing up to 1, and "
            "a percentage, e.g. [[0.5, 60], [1, 75]]."
        )
    if points and not cfg.expected.experiment:
        yield "expected.experiment: not set; name the experiment that reached expected.knn_top1."
