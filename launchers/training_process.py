"""One process of one run, from its configuration: `python -m launchers.training_process DIRECTORY`.

Launchers start it; nothing is composed here, so that all processes and attempts train the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dino_exp.config.stored import read_config
from dino_exp.errors import UserError, refuse
from dino_exp.parallel.processes import Processes
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.train.attempt import attempt


def main() -> int:
    """Train; returns the exit code of `train.py`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--share", type=int, default=1, help="runs that share this run's GPU")
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    try:
        cfg = read_config(RunDirectory(directory))
    except UserError as error:
        return refuse([str(error)])
    from dino_exp.parallel import distributed  # torch comes last, when all else is in order

    if arguments.share > 1:
        take_share_of_memory(1 / arguments.share)
    processes = Processes.from_environment()
    if processes.count == 1:
        return attempt(cfg, directory, directory.parent.name).exit_code
    with distributed.joined(processes):
        outcome = attempt(cfg, directory, directory.parent.name)
    distributed.leave(outcome.exit_code)


def take_share_of_memory(share: float) -> None:
    """Fail in this run, and not in its neighbors, when it needs more GPU memory than its share."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


if __name__ == "__main__":
    sys.exit(main())
