"""Sends the runs of a sweep to a SLURM cluster or to this machine, and keeps track of them.

A sweep's folder holds all that is known of it: `manifest.json` (what was asked for, and which job has it) and
one run directory each (what became of it). Everything here reads and writes these files alone, so whoever
submitted may go away, and anyone may ask later.
"""
