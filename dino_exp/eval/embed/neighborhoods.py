"""What lies beside what: nearest neighbors of features, and maps of them in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_exp.eval.neighbors import nearest

AGREEMENT = (1, 10)
"""Numbers of neighbors whose classes are compared with the image's."""
FEWEST = 4
"""Images of a map: t-SNE's neighborhoods need a few."""


@dataclass(frozen=True)
class Neighbors:
    """Of M of the images, which of all the others are nearest."""

    rows: Tensor
    """(M,) rows of the features."""
    where: Tensor
    """(M, k), rows of the neighbors, nearest first."""
    cosines: Tensor
    """(M, k)."""


def nearest_others(features: Tensor, rows: Tensor, k: int, device: torch.device) -> Neighbors:
    """The k nearest by cosine to each of `rows` (M,), among all N features but itself; fewer where N <= k."""
    cosines, where = nearest(features, features[rows].to(device), k + 1)
    cosines, where = cosines.cpu(), where.cpu()
    itself = where == rows[:, None]
    itself[~itself.any(dim=1), -1] = True  # more than k equal ones have pushed it out: one of them goes
    shape = (len(rows), where.shape[1] - 1)
    return Neighbors(rows, where[~itself].view(shape), cosines[~itself].view(shape))


def agreement(labels: Tensor, neighbors: Neighbors) -> tuple[dict[str, float], float]:
    """Percent of the k nearest that have the image's own class; and of others drawn at random.

    labels: (N,) int64 of all images. A k of which there are not as many neighbors is left out.
    """
    own = labels[neighbors.rows]
    same = (labels[neighbors.where] == own[:, None]).double()
    shares = {f"same_class_k{k}": 100 * same[:, :k].mean().item() for k in AGREEMENT if k <= same.shape[1]}
    others = torch.bincount(labels)[own] - 1
    return shares, 100 * (others.double().mean() / (len(labels) - 1)).item()


def layout(features: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, str]:
    """Places (N, 2) of features (N, D), N at least FEWEST, by `tsne` or `umap`; and the settings in words."""
    if method == "umap":
        from umap import UMAP

        neighbors = min(15, len(features) - 1)
        places = UMAP(
            n_neighbors=neighbors, metric="cosine", init="pca", random_state=seed, n_jobs=1
        ).fit_transform(features)
        return np.asarray(places), f"UMAP (cosine, {neighbors} neighbors, seed {seed})"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    places = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(
        features
    )
    return places, f"t-SNE (cosine, perplexity {perplexity:.3g}, seed {seed})"
