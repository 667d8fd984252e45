"""Where this project lies, in a checkout or installed, and what its programs are called there.

It needs no library, because every job starts with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
"""The folder of all our packages: the checkout, or Python's site-packages."""
CHECKOUT = not (PACKAGE / "conf").is_dir()
"""Whether the code is that of a checkout, as an editable install's is; a wheel has conf/ in the package."""
CONF = ROOT / "conf" if CHECKOUT else PACKAGE / "conf"
"""The configuration files."""

COMMANDS = {
    "torchrun --nproc-per-node 8 evaluate.py": "torchrun --nproc-per-node 8 -m dino_exp.eval",
    "python train.py": "dino-train",
    "python evaluate.py": "dino-evaluate",
    "python report.py": "dino-report",
    "python -m dino_exp.export": "dino-export",
    "python -m launchers": "dino-sweep",
    "train.py": "dino-train",
    "evaluate.py": "dino-evaluate",
}
"""What is typed in a checkout, and what is typed elsewhere; the longer ones first."""


def as_typed(text: str) -> str:
    """Return our own text with its commands as this user types them.

    Not for text that contains a user's words, such as paths.
    """
    if CHECKOUT and Path(sys.argv[0]).name not in COMMANDS.values():
        return text
    for in_checkout, installed in COMMANDS.items():
        text = text.replace(in_checkout, installed)
    return text
