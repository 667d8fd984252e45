"""Backbones f: images (B, C, H, W) in, one feature vector each out, (B, feature_dim)."""
