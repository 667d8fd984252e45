"""`report.py` and `dino-report` as a module: `python -m dino_exp.report outputs/...`."""

import sys

from dino_exp.report.report_command import main

if __name__ == "__main__":
    sys.exit(main())
