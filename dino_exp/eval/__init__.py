"""Evaluations of features, by `evaluate.py` and during training."""
