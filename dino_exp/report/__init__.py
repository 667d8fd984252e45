"""A run or a sweep as one page: what became of it, its curves, its phase diagram.

`load` reads the folders and needs nothing else; `run_figures` and `sweep_figures` draw with Altair; `page`
puts the page together.
"""
