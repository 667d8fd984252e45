"""scikit-learn's logistic regression on standardized features, for several strengths of the penalty."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
import torch

from dino_exp.errors import UserError

MAX_ITERATIONS = 1000
"""Limit of L-BFGS, which needs tens on standardized features, and hundreds where the penalty is weak."""

SMALL = 10**7
"""Size of the features below which one thread is fastest: two made fits of 1,200 rows 36 times slower."""

FeaturesAndLabels: TypeAlias = "tuple[np.ndarray, np.ndarray]"
"""Features float32 (N, D) and labels int64 (N,)."""


def check_scikit_learn() -> None:
    """Raise UserError if scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise UserError("scikit-learn is missing; pip install 'dino-exp[eval]'.")


def regressions(
    train: FeaturesAndLabels,
    judged: Sequence[FeaturesAndLabels],
    cs: Sequence[float],
    ks: Sequence[int] = (1,),
) -> tuple[np.ndarray, int]:
    """Fit `train` with each C, and return top-k accuracies on `judged` and the number of unconverged fits.

    Accuracies are in percent, (cs, judged, ks), and NaN where features are not finite.
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
    # Each fit starts from the previous one's weights, small C first: the same optimum in less time.
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    unconverged = 0
    for number in np.argsort(cs, kind="stable"):
        threads = 1 if features.size < SMALL else None
        with warnings.catch_warnings(), threadpool_limits(threads):
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
            model.set_params(C=cs[number]).fit(features, train[1])
        unconverged += int(model.n_iter_.max() >= MAX_ITERATIONS)
        for position, (queries, labels) in enumerate(scaled):
            if queries is not None:
                likely = torch.from_numpy(model.predict_proba(queries))
                order = likely.topk(min(max(ks), likely.shape[1]), dim=1).indices.numpy()
                hits = model.classes_[order] == labels[:, None]
                right[number, position] = [100 * hits[:, :k].any(axis=1).mean() for k in ks]
    return right, unconverged


def convergence_notes(unconverged: int) -> list[str]:
    """Return a note on fits that have not converged, if there are any."""
    note = f"{unconverged} logistic regressions stopped after {MAX_ITERATIONS} steps, before the optimum."
    return [note] if unconverged else []
