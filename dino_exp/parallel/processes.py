"""The position of this process among those of a run, from the environment of `torchrun` or a launcher."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dino_exp.errors import UserError

RENDEZVOUS = "DINO_EXP_RENDEZVOUS"
"""Variable with the path of a file to which rank 0 writes its address: our launchers set none beforehand."""
SHARED_BATCHES = "DINO_EXP_SHARED_BATCHES"
"""Variable with the folder in memory through which runs share batches; without it, or empty, they do not."""
REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STARTING = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Variables that only a launcher sets; an address alone is often left in a cluster's environment."""
STOPPING = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
]
"""Signals that ask a run to save and stop: Ctrl-C, those of SLURM before a preemption or the time limit, that
of submitit, and that of a terminal or connection that is closed."""


def stop_signals() -> list[signal.Signals]:
    """Return `STOPPING` without SIGHUP where it is ignored, as under `nohup`."""
    ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOPPING if not (ignored and number == signal.SIGHUP)]


@dataclass(frozen=True)
class Processes:
    """Position of this process among those that train one run together."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_count: int = 1
    """Number of processes of this machine."""
    rendezvous: Path | None = None
    """File to which rank 0 writes its address; None where the environment has the address."""

    @property
    def on_one_machine(self) -> bool:
        """Whether all of them are known to be on this machine."""
        return self.local_count == self.count

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Processes:
        """Read the variables that `torchrun` sets; without them there is one process.

        Raises:
            UserError: some of them are missing, are not whole numbers, or contradict one another.
        """
        if not any(name in environment for name in STARTING):
            return cls()
        rendezvous = environment.get(RENDEZVOUS)
        required = STARTING if rendezvous else REQUIRED
        missing = [name for name in required if not environment.get(name)]
        if missing:
            present = [name for name in required if name not in missing]
            raise UserError(
                f"The environment has {', '.join(present)} but not {', '.join(missing)}: several processes "
                "need all of them. Start with torchrun, or unset them all to train in one process."
            )
        names = (*STARTING, "LOCAL_WORLD_SIZE")
        given = [environment.get(name) or environment["WORLD_SIZE"] for name in names]
        if not all(text.isdecimal() for text in given):
            shown = ", ".join(f"{name}={text}" for name, text in zip(names, given, strict=True))
            raise UserError(
                f"The environment has {shown}: these must be whole numbers, as torchrun sets them."
            )
        rank, count, local_rank, local_count = map(int, given)
        if not (rank < count and local_rank < local_count <= count):
            raise UserError(
                f"The environment has RANK={rank}, WORLD_SIZE={count}, LOCAL_RANK={local_rank} and "
                f"LOCAL_WORLD_SIZE={local_count}: a rank must be below the number of processes."
            )
        return cls(rank, count, local_rank, local_count, Path(rendezvous) if rendezvous else None)
