"""All that is to be known about this project on one GPU, by one command of nine minutes at most.

    python -m benchmarks.gpu                                     # everything, in the order of its worth
    python -m benchmarks.gpu --sections machine step --seconds 240
    python -m benchmarks.gpu --device cpu                        # a rehearsal with tiny sizes

Each section is a process of its own with a share of the time, so that what hangs, crashes or runs out of
memory costs its own figures only. Every row is in `gpu.json` as soon as it is known; `gpu.log` has what the
sections print.
"""
