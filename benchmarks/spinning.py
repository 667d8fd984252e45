"""Time of a training step beside busy processes, by how long OpenMP's threads spin while they wait.

    python -m benchmarks.spinning                       # experiment=shapes and ViT-S/16
    python -m benchmarks.spinning --cases shapes --spins 300000 10000 3000 --rounds 10

A process per setting is started and warmed up; then they step in turn, in random order, beside none, one and
three processes that never wait, so that other load on the machine affects all settings.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from benchmarks.measure import report
from benchmarks.step import make_trainer, random_views
from dino_exp import machine

BUSY = (0, 1, 3)
SPINS = ["300000", "30000", "10000", "3000", "1000", "0"]
"""Values of GOMP_SPINCOUNT; the first is libgomp's own."""


def step_on_request(case: str) -> None:
    """Train as many steps as each line of the standard input asks for, and print the seconds of each."""
    device = torch.device("cpu")
    machine.use_threads(device, 0)
    trainer = make_trainer(case, None if case == "shapes" else 4, device, "fp32")
    views = random_views(trainer)
    for line in sys.stdin:
        for _ in range(int(line)):
            start = time.perf_counter()
            trainer.train_step(views, False)
            print(time.perf_counter() - start, flush=True)


class Setting:
    """A process that trains with one setting.

    Args:
        case: one of `benchmarks.step`.
        spins: GOMP_SPINCOUNT.
    """

    def __init__(self, case: str, spins: str) -> None:
        command = [sys.executable, "-m", "benchmarks.spinning", "--serve", case]
        environment = os.environ | {"GOMP_SPINCOUNT": spins}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.seconds: dict[int, list[float]] = {busy: [] for busy in BUSY}
        self.steps(2)

    def steps(self, count: int) -> list[float]:
        """Return the seconds of the next steps."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return [float(self.process.stdout.readline()) for _ in range(count)]


def measure(case: str, spins: list[str], rounds: int) -> list[dict[str, Any]]:
    """Measure the settings in turn; the median step of each, also relative to the first one's quiet step."""
    settings = {spin: Setting(case, spin) for spin in spins}
    for _ in range(rounds):
        for busy in BUSY:
            loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            for setting in random.sample(list(settings.values()), len(settings)):
                setting.seconds[busy] += setting.steps(3)
            for loop in loops:
                loop.kill()
                loop.wait()
    rows = []
    today = statistics.median(settings[spins[0]].seconds[0])
    for spin, setting in settings.items():
        setting.process.kill()
        median = {busy: statistics.median(seconds) for busy, seconds in setting.seconds.items()}
        row: dict[str, Any] = {"case": case, "spins": spin, "ms quiet": 1000 * median[0]}
        row["of the first"] = median[0] / today
        rows.append(row | {f"x beside {busy}": median[busy] / median[0] for busy in BUSY[1:]})
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["shapes", "vit_small"])
    parser.add_argument("--spins", nargs="+", default=SPINS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        step_on_request(arguments.serve)
        return
    rows = [row for case in arguments.cases for row in measure(case, arguments.spins, arguments.rounds)]
    report("spinning", "Median step beside 0, 1 and 3 busy processes", rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
