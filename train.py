"""Train one run or a sweep; `python train.py --help` explains how."""

import sys

from dino_exp.cli import main

if __name__ == "__main__":
    sys.exit(main())
