"""The algorithm (Caron et al. 2021), free of files and configuration."""
