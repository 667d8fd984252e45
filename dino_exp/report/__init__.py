"""Reports on a run or a sweep: verdict, curves, evaluations, phase diagram.

`loading` reads the folders, `run_figures` and `sweep/` draw with Altair, and `page` renders the HTML.
"""
