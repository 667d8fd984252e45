"""Real runs of `train.py`, and their speed as metrics.jsonl has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence, Set
from typing import Any

from benchmarks.gpu.context import Context
from dino_exp.errors import UserError
from dino_exp.installation import ROOT

SKIPPED = 2
"""Logged steps that do not count: the first, and those while code is compiled and the loader fills up."""
COUNTED = 4
"""Logged steps that do: the last ones, when all of several runs have so many."""


class Run:
    """A run in a process and a folder of its own.

    Args:
        name: the folder's.
        words: those of `train.py`.
        cores: the CPU cores that it may use; empty for all.
    """

    def __init__(self, context: Context, name: str, *words: str, cores: Set[int] = frozenset()) -> None:
        self.folder = context.scratch / name
        self.folder.mkdir()
        command = [sys.executable, "-u", str(ROOT / "train.py"), *words, "tracker=none", "output_root=."]
        command.append(f"trainer.device={context.device.type}")
        with (self.folder / "output.txt").open("wb") as output:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder
            )
        if cores:
            os.sched_setaffinity(self.process.pid, cores)

    def counted(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl that count, as far as they are written."""
        found = list(self.folder.glob("*/*/metrics.jsonl"))
        lines = found[0].read_text().split("\n")[:-1] if found else []
        logged = [json.loads(line) for line in lines]
        return [line for line in logged if "images_per_second" in line][SKIPPED:]

    def end(self) -> str:
        """End it, unless it has ended, and print what it has said; return why it had failed, if it had."""
        code = self.process.poll()
        self.process.kill()
        self.process.wait()
        said = (self.folder / "output.txt").read_text(errors="replace")
        print(said, flush=True)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        return f"exit code {code}: {lines[-1] if lines else 'it said nothing'}" if code else ""

    def speed(self) -> tuple[float, float]:
        """Return images/s, and the share of the time in which it waited for data.

        Raises UserError if it has logged nothing that counts.
        """
        lines = self.counted()[-COUNTED:]
        if not lines:
            raise UserError(f"not more than {SKIPPED} logged steps in the time")
        seconds = [1 / line["images_per_second"] for line in lines]
        waited = sum(line["data_wait_share"] * spent for line, spent in zip(lines, seconds, strict=True))
        return len(lines) / sum(seconds), waited / sum(seconds)


def speeds(runs: Sequence[Run], seconds: float) -> list[tuple[float, float]]:
    """Return images/s and share of waiting of each run, as soon as all have logged enough.

    Then, and in any case after `seconds`, they are ended. Raises UserError if one has failed or logged too
    little.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(
        run.process.poll() is None and len(run.counted()) < COUNTED for run in runs
    ):
        time.sleep(0.5)  # the runs tell nothing but what they log
    failed = list(filter(None, [run.end() for run in runs]))
    if failed:
        raise UserError(failed[0])
    return [run.speed() for run in runs]
