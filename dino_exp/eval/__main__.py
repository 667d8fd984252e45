"""`evaluate.py` as a module: `torchrun --nproc-per-node 8 -m dino_exp.eval run=...`."""

import sys

from dino_exp.eval.evaluate_command import main

if __name__ == "__main__":
    sys.exit(main())
