"""The paths of this project, in a checkout or installed, and the names of its programs there.

It imports no library, because every job starts with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
"""The folder of all our packages: the checkout, or Python's site-packages."""
CHECKOUT = not (PACKAGE / "conf").is_dir()
"""True in a checkout and an editable install; a wheel has conf/ in the package."""
CONF = ROOT / "conf" if CHECKOUT else PACKAGE / "conf"
"""The configuration files."""

COMMANDS = {
    "torchrun --nproc-per-node 8 evaluate.py": "torchrun --nproc-per-node 8 -m dino_exp.eval",
    "python train.py": "dino-train",
    "python evaluate.py": "dino-evaluate",
    "python report.py": "dino-report",
    "python -m dino_exp.export": "dino-export",
    "python -m dino_exp.inspection": "dino-exp inspect",
    "python -m launchers": "dino-sweep",
    "train.py": "dino-train",
    "evaluate.py": "dino-evaluate",
}
"""The commands in a checkout, and those of an installed package; the longer ones first."""


def as_typed(text: str) -> str:
    """Return our own text with its commands as this user types them.

    Not for text that contains a user's words, such as paths.
    """
    if CHECKOUT and Path(sys.argv[0]).name not in {each.partition(" ")[0] for each in COMMANDS.values()}:
        return text
    for in_checkout, installed in COMMANDS.items():
        text = text.replace(in_checkout, installed)
    return text
