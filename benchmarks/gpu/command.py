"""The command line: the sections, their tables, and the process of one section."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import benchmarks.gpu
from benchmarks.gpu import (
    attention,
    correctness,
    end_to_end,
    hardware,
    kernels,
    several_runs,
    training_step,
)
from benchmarks.gpu.context import Context
from benchmarks.gpu.guard import run_sections
from benchmarks.gpu.results import Results, Row
from benchmarks.measure import OUTPUTS, as_table
from dino_exp import machine
from dino_exp.console import Console
from dino_exp.errors import UserError
from dino_exp.installation import ROOT

CLOSING_SECONDS = 5
"""Kept for the tables."""


class Section(NamedTuple):
    """A part of the measurement."""

    rows: Callable[[Context], Iterator[Row]]
    title: str
    share: float
    """Seconds of the 540."""


SECTIONS = {
    "machine": Section(hardware.rows, "Machine", 25),
    "correctness": Section(correctness.rows, "Correctness: relative errors, of norms", 95),
    "step": Section(
        training_step.rows,
        f"Training step in bf16, {training_step.BURST} in a row; stretch goal {training_step.STRETCH:.0%} of "
        "the rate of one large matrix product",
        210,
    ),
    "kernels": Section(kernels.rows, "One step with its augmentation, as profiled", 45),
    "end_to_end": Section(end_to_end.rows, "Training from JPEGs", 75),
    "attention": Section(attention.rows, "Attention in bf16, time of the device", 20),
    "several_runs": Section(several_runs.rows, "Runs of the default experiment at once", 60),
}
"""In the order of their worth."""


def main(start: float) -> None:
    """Run the sections, or in a process of its own one of them, within the seconds from `start`."""
    arguments = parse()
    try:
        device = machine.choose_device(arguments.device, "--device")
    except UserError as error:
        sys.exit(str(error))
    results = Results(arguments.output.absolute() / "gpu.json")
    if arguments.section:
        machine.use_threads(device, 0)
        context = Context(device, arguments.until, results, Path.cwd(), arguments.images)
        for row in SECTIONS[arguments.section].rows(context):
            results.add(arguments.section, row)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Ended by SIGTERM."))  # and the section with it
    if device.type != "cuda":
        print("Without a GPU this is a rehearsal: tiny sizes, and figures that mean nothing.")
    results.begin(
        {
            "benchmark": "gpu",
            "date": datetime.date.today().isoformat(),
            "command": sys.argv[1:],
            "torch": torch.__version__,
        }
    )
    log = results.path.with_suffix(".log")
    log.write_bytes(b"")

    def command(name: str, until: float) -> list[str]:
        words = [f"--section={name}", f"--until={until}", f"--device={device.type}"]
        words += [f"--output={results.path.parent}"]
        words += [f"--images={arguments.images.absolute()}"] if arguments.images else []
        return [sys.executable, "-m", "benchmarks.gpu", *words]

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as scratch:
        until = start + arguments.seconds - CLOSING_SECONDS
        shares = {name: SECTIONS[name].share for name in SECTIONS if name in arguments.sections}
        run_sections(shares, command, results, until, log, Path(scratch))
    show(results.read())
    print(f"{results.path}, {log}: {time.monotonic() - start:.0f} s in all")


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=benchmarks.gpu.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--seconds", type=float, default=540, help="for everything; default 540")
    parser.add_argument("--device", default="auto", help="cpu for a rehearsal")
    parser.add_argument("--images", type=Path, help="folder of photographs; default: generated ones")
    parser.add_argument("--output", type=Path, default=OUTPUTS, help=f"folder; default {OUTPUTS}")
    parser.add_argument("--section", choices=list(SECTIONS), help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    return parser.parse_args(words)


def show(content: dict[str, Any]) -> None:
    """Print the tables of all sections; lists are in the file only."""
    console = Console(width=170)
    for name, section in content["sections"].items():
        rows = [
            {key: value for key, value in row.items() if not isinstance(value, list)}
            for row in section["rows"]
        ]
        columns = dict.fromkeys(key for row in rows for key in row if key != "note")
        notes = {"note": None} if any("note" in row for row in rows) else {}
        ended = ", ".join(filter(None, [f"{section.get('seconds')} s", section.get("note")]))
        complete = [{key: row.get(key) for key in [*columns, *notes]} for row in rows]
        console.print(as_table(f"{SECTIONS[name].title} ({ended})", complete))
        console.print()
