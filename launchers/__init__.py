"""Submission of sweeps to a SLURM cluster or to this machine, and the commands that follow them.

A sweep's folder holds everything that is known about it: `manifest.json` (its runs, and which job has each)
and one run directory per run (its state and results). Launchers keep no other state, so the process that
submitted may exit, and anybody can ask later.
"""
