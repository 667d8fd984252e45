"""Writes the page of a run or a sweep; `python report.py --help` says how."""

import sys

from dino_exp.report.report_command import main

if __name__ == "__main__":
    sys.exit(main())
