"""Real runs of `train.py`, and their speed as metrics.jsonl has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Set
from typing import Any

from benchmarks.gpu.context import Context
from dino_exp.errors import UserError
from dino_exp.installation import ROOT

SKIPPED = 2
"""Logged steps that do not count: the first, and those while code is compiled and the loader fills up."""


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

    def end(self, seconds: float) -> None:
        """Wait for its end, and end it after `seconds`. Raises UserError if it failed."""
        try:
            failed = self.process.wait(max(0.0, seconds)) != 0
        except subprocess.TimeoutExpired:  # what it has logged counts
            self.process.kill()
            failed = False
        said = (self.folder / "output.txt").read_text(errors="replace")
        print(said, flush=True)
        if failed:
            lines = [line for line in said.splitlines() if line.strip()]
            raise UserError(f"it failed: {lines[-1] if lines else 'and said nothing'}")

    def speed(self) -> tuple[float, float]:
        """Return images/s, and the share of the time in which it waited for data, of the logged steps.

        Raises UserError if none counts.
        """
        found = list(self.folder.glob("*/*/metrics.jsonl"))
        lines = found[0].read_text().splitlines() if found else []
        logged: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
        laps = [line for line in logged if "images_per_second" in line][SKIPPED:]
        if not laps:
            raise UserError("no logged step after the first two")
        seconds = [1 / line["images_per_second"] for line in laps]
        waited = sum(line["data_wait_share"] * time for line, time in zip(laps, seconds, strict=True))
        return len(laps) / sum(seconds), waited / sum(seconds)
