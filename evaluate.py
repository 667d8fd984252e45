"""Says what a network's features are worth; `python evaluate.py --help` says how."""

import sys

from dino_exp.eval.evaluate_command import main

if __name__ == "__main__":
    sys.exit(main())
