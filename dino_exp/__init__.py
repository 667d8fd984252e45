"""DINO self-supervised pretraining (Caron et al. 2021): exact, resumable, with collapse diagnostics."""

import os

__version__ = "0.1.0"

# Before anything imports torch, whose OpenMP reads it once. By default its threads spin for milliseconds
# where they wait for one another, and keep the core from the one that they wait for if other programs run.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "3000"
