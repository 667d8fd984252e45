"""Comparison of two runs or two sweeps."""
