"""What a run shows: curves and sheets of images as PNG files, and pages of interactive figures.

PNG files are made with matplotlib's object API and the Agg canvas: no display, no global state, any thread.
Pages are made with Altair.
"""
