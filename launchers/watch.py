"""Waiting for a sweep, with a live table; to stop waiting stops no run."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from rich.live import Live

from dino_exp.console import Console
from dino_exp.installation import as_typed
from dino_exp.runs.manifest import Manifest
from launchers.states import Observer, RunState
from launchers.table import failures, runs_table

POLL_SECONDS = 2.0
OTHER_LINES = 5
"""Lines of the live table besides the runs."""


def wait(folder: Path, names: Collection[str], console: Console) -> list[RunState]:
    """Show the sweep until none of the runs `names` is active, and return their final states.

    A terminal shows a live table; otherwise a line is printed whenever the state of a run changes.
    """
    observer, manifest = Observer(), Manifest.load(folder)
    before: dict[str, str] = {}
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_interactive else None
    if live:
        live.start()
    try:
        while True:
            manifest = Manifest.load(folder)
            runs = [run for run in observer.observe(manifest) if run.name in names]
            if live:
                live.update(runs_table(manifest, runs, max(3, console.height - OTHER_LINES)), refresh=True)
            for run in runs:
                if not live and before.get(run.name) != run.state:
                    console.print(f"{run.label}: {run.state}")
                before[run.name] = run.state
            if not any(run.active for run in runs):
                break
            time.sleep(POLL_SECONDS)
    finally:
        if live:
            live.stop()
    print_sweep(manifest, runs, console)
    return runs


def print_sweep(manifest: Manifest, runs: list[RunState], console: Console) -> None:
    """Print the table of all runs, and below it the failures."""
    console.print(runs_table(manifest, runs))
    if failed := failures(manifest, runs):
        console.print(failed)


def how_to_come_back(folder: Path) -> str:
    """Return a sentence with the commands for a sweep that runs in the background."""
    return (
        f"The runs continue. {as_typed('python -m launchers')} status {folder} shows them; the commands "
        "wait, logs, cancel, resume and collect take the same folder."
    )
