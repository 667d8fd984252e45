"""scikit-learn's logistic regression on standardized features, for several strengths of its penalty."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from dino_exp.errors import UserError

MAX_ITERATIONS = 1000
"""Of L-BFGS, which needs some tens on standardized features, and hundreds where the penalty is weak."""

SMALL = 10**7
"""Numbers in the features below which one thread is best: two made fits of 1,200 rows 36 times slower."""

Labeled: TypeAlias = "tuple[np.ndarray, np.ndarray]"
"""Features float32 (N, D) and labels int64 (N,)."""


def need_scikit_learn() -> None:
    """Raise UserError where it is missing."""
    try:
        import sklearn.linear_model  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise UserError("scikit-learn is missing; install it with: pip install 'dino-exp[eval]'") from error


def regressions(
    train: Labeled, judged: Sequence[Labeled], cs: Sequence[float], ks: Sequence[int] = (1,)
) -> tuple[np.ndarray, int]:
    """Percent of each of `judged` that fits of `train` have right, (cs, judged, ks), and how many fell short.

    An image is right for k where its class is among the k likeliest. NaN where features are not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    right = np.full((len(cs), len(judged), len(ks)), math.nan)
    if not np.isfinite(train[0]).all():
        return right, 0
    scaler = StandardScaler()
    features = scaler.fit_transform(train[0])
    scaled = [
        (scaler.transform(each) if np.isfinite(each).all() else None, labels) for each, labels in judged
    ]
    # Each fit begins where the one before ended, small C first: the same optimum in less time.
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    short = 0
    for number in np.argsort(cs, kind="stable"):
        threads = 1 if features.size < SMALL else None
        with warnings.catch_warnings(), threadpool_limits(threads):
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
            model.set_params(C=cs[number]).fit(features, train[1])
        short += int(model.n_iter_.max() >= MAX_ITERATIONS)
        for place, (queries, labels) in enumerate(scaled):
            if queries is not None:
                likely = torch.from_numpy(model.predict_proba(queries))
                order = likely.topk(min(max(ks), likely.shape[1]), dim=1).indices.numpy()
                hits = model.classes_[order] == labels[:, None]
                right[number, place] = [100 * hits[:, :k].any(axis=1).mean() for k in ks]
    return right, short


def cut_short(fits: int) -> list[str]:
    """The note on `fits` fits that fell short, if any."""
    return (
        [f"{fits} logistic regressions ended after {MAX_ITERATIONS} steps, before the optimum."]
        if fits
        else []
    )
