"""`python -m dino_exp.export run=outputs/... format=timm`; without arguments it prints the usage."""

import sys

from dino_exp.export.export_command import main

if __name__ == "__main__":
    sys.exit(main())
