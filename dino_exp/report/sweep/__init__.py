"""The page of a sweep: its axes, phase diagram, curves and table."""
