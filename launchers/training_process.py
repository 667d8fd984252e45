"""One process of a run, started by a launcher: `python -m launchers.training_process DIRECTORY`.

It reads the stored configuration and composes nothing, so all processes and attempts train the same run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dino_exp.config.plugins import load
from dino_exp.config.stored import read_config
from dino_exp.errors import UserError, refuse
from dino_exp.parallel.processes import Processes
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.streams import protect
from dino_exp.training.attempt import attempt


def main() -> int:
    """Train, and return the exit code that `train.py` would return."""
    protect()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--share", type=int, default=1, help="runs that share this run's GPU")
    parser.add_argument(
        "--plugin", nargs=2, action="append", default=[], metavar=("MODULE", "FOLDER"), help="to import"
    )
    arguments = parser.parse_args()
    directory: Path = arguments.directory.resolve()
    try:
        for module, folder in arguments.plugin:
            load([module], folder)
        cfg = read_config(RunDirectory(directory))
    except UserError as error:
        return refuse([str(error)])
    from dino_exp.parallel import distributed  # imports torch, so only once the configuration is valid

    if arguments.share > 1:
        limit_gpu_memory(1 / arguments.share)
    processes = Processes.from_environment()
    if processes.count == 1:
        return attempt(cfg, directory, directory.parent.name).exit_code
    with distributed.joined(processes):
        outcome = attempt(cfg, directory, directory.parent.name)
    distributed.leave(outcome.exit_code)


def limit_gpu_memory(share: float) -> None:
    """Make this run fail, and not the others on its GPU, if it needs more memory than its share."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


if __name__ == "__main__":
    sys.exit(main())
