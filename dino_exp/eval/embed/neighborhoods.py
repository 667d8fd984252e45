"""Neighbors in feature space: the nearest other images, and maps in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino_exp.eval.neighbors import nearest

AGREEMENT = (1, 10)
"""Numbers of neighbors whose classes are compared with the image's."""
FEWEST = 4
"""Least number of images on a map, because t-SNE needs a few neighbors."""


@dataclass(frozen=True)
class Neighbors:
    """The k nearest neighbors of M images among all other images."""

    rows: Tensor
    """(M,): the images, as rows of the features."""
    nearest: Tensor
    """(M, k): their neighbors, as rows of the features, nearest first."""
    cosines: Tensor
    """(M, k)."""


def nearest_others(features: Tensor, rows: Tensor, k: int, device: torch.device) -> Neighbors:
    """Return the k nearest by cosine to each of `rows` (M,) among the other N - 1 features, or all others."""
    cosines, found = nearest(features, features[rows].to(device), k + 1)
    cosines, found = cosines.cpu(), found.cpu()
    itself = found == rows[:, None]
    itself[~itself.any(dim=1), -1] = True  # more than k equal features have displaced it: drop one of them
    shape = (len(rows), found.shape[1] - 1)
    return Neighbors(rows, found[~itself].view(shape), cosines[~itself].view(shape))


def agreement(labels: Tensor, neighbors: Neighbors) -> tuple[dict[str, float], float]:
    """Return the percent of the k nearest that have the image's class, for each k, and that of random images.

    labels: (N,) int64 of all images. A k greater than the number of neighbors is skipped.
    """
    own = labels[neighbors.rows]
    same = (labels[neighbors.nearest] == own[:, None]).double()
    shares = {f"same_class_k{k}": 100 * same[:, :k].mean().item() for k in AGREEMENT if k <= same.shape[1]}
    others = torch.bincount(labels)[own] - 1
    return shares, 100 * (others.double().mean() / (len(labels) - 1)).item()


def map_coordinates(features: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, str]:
    """Map features (N, D) to (N, 2) by `tsne` or `umap`, N ≥ FEWEST; also return the settings in words."""
    if method == "umap":
        from umap import UMAP

        neighbors = min(15, len(features) - 1)
        umap = UMAP(n_neighbors=neighbors, metric="cosine", init="pca", random_state=seed, n_jobs=1)
        return np.asarray(umap.fit_transform(features)), f"UMAP (cosine, {neighbors} neighbors, seed {seed})"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed)
    return tsne.fit_transform(features), f"t-SNE (cosine, perplexity {perplexity:.3g}, seed {seed})"
