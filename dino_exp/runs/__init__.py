"""The on-disk contract: the files of runs and sweeps, and the former names in them."""
