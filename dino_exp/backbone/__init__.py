"""Backbones: picture in, feature vector out."""
