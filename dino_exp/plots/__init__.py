"""Images of a run: its curves, its attention, its crops.

Figures are made with matplotlib's object API and the Agg canvas: no display, no global state, any thread.
"""
