"""Names of figures as people say them."""

from __future__ import annotations

import re

WORDS = {
    "val_top1": "top-1, validation split",
    "jaccard_mean": "Jaccard, mean of the heads",
    "jaccard_best_head": "Jaccard, best head of each image",
    "jaccard_even": "Jaccard, whole image",
    "jaccard_center": "Jaccard, centered Gaussian",
    "mass": "attention inside the mask",
    "area": "area of the mask",
    "gaussian_mass": "centered Gaussian inside the mask",
    "auc": "AUC",
    "gaussian_auc": "AUC of the centered Gaussian",
    "map_strong": "mAP, strong",
    "jf_mean": "J&F, mean",
    "j_mean": "J, mean",
    "j_recall": "J, recall",
    "j_decay": "J, decay",
    "f_mean": "F, mean",
    "f_recall": "F, recall",
    "f_decay": "F, decay",
}
PATTERNS = (
    (r"top(\d+)", r"top-\1"),
    (r"top(\d+)_k(\d+)", r"top-\1, k = \2"),
    (r"same_class_k(\d+)", r"neighbors of the same class, k = \1"),
    (r"roxford5k_map_(\w+)", r"ROxford mAP, \1"),
    (r"roxford5k_mp(\d+)_(\w+)", r"ROxford mean precision at \1, \2"),
    (r"rparis6k_map_(\w+)", r"RParis mAP, \1"),
    (r"rparis6k_mp(\d+)_(\w+)", r"RParis mean precision at \1, \2"),
)


def in_words(name: str) -> str:
    """`top1_k20` as top-1, k = 20; unknown names as they are."""
    if name in WORDS:
        return WORDS[name]
    share = re.fullmatch(r"top(\d+)_share([\d.]+)", name)
    if share:
        return f"top-{share[1]} with {100 * float(share[2]):g} % of the labels"
    for pattern, words in PATTERNS:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(words)
    return name
