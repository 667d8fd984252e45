"""`dino-exp inspect` as a module: `python -m dino_exp.inspection PATH`."""

import sys

from dino_exp.inspection.inspect_command import inspect_main

if __name__ == "__main__":
    sys.exit(inspect_main())
