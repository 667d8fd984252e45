"""Backbones: image in, feature vector out."""
