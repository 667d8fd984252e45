"""`train.py` and `dino-train` as a module: `torchrun --nproc-per-node 8 -m dino_exp experiment=...`."""

import sys

from dino_exp.cli import main

if __name__ == "__main__":
    sys.exit(main())
