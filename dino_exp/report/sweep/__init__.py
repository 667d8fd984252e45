"""The page of a sweep: axes, phase diagram, curves and table."""
