"""`python -m dino_exp.export run=outputs/... format=timm`; without arguments it says how."""

import sys

from dino_exp.export.export_command import main

if __name__ == "__main__":
    sys.exit(main())
