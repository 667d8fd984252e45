"""Linear classifiers on frozen features, with all labels or with few."""
