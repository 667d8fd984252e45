"""See the package's docstring."""

import sys
import time

from benchmarks.gpu.requirements import REQUIRED, missing

if __name__ == "__main__":
    start = time.monotonic()  # the imports take seconds, which count
    if absent := missing(REQUIRED):
        sys.exit(f"Not installed: {', '.join(absent)}. Install the project, or these packages, first.")
    from benchmarks.gpu.command import main

    main(start)
