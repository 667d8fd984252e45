"""DINO self-supervised pretraining (Caron et al. 2021): exact, resumable, with collapse diagnostics."""

__version__ = "0.1.0"
