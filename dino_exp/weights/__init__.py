"""Pretrained weights: what a file contains, and how it is loaded into our networks."""
