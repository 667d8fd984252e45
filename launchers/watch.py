"""Waiting for a sweep, with a table; whoever stops waiting stops nothing else."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from dino_exp.installation import as_typed
from dino_exp.runs.manifest import Manifest
from launchers.states import Observer, RunState
from launchers.table import failures, sweep_table

POLL_SECONDS = 2.0
OTHER_LINES = 5
"""Of the live table beside the runs."""


def wait(folder: Path, names: Collection[str], console: Console) -> list[RunState]:
    """Show the sweep until none of the runs `names` is in anyone's hands; these as they ended.

    On a terminal a live table; elsewhere a line whenever a run changes.
    """
    observer, manifest = Observer(), Manifest.load(folder)
    before: dict[str, str] = {}
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    if live:
        live.start()
    try:
        while True:
            manifest = Manifest.load(folder)
            runs = [run for run in observer.observe(manifest) if run.name in names]
            if live:
                live.update(sweep_table(manifest, runs, max(3, console.height - OTHER_LINES)), refresh=True)
            for run in runs:
                if not live and before.get(run.name) != run.state:
                    console.print(Text(f"{' '.join(run.entry.overrides) or run.name}: {run.state}"))
                before[run.name] = run.state
            if not any(run.in_hand for run in runs):
                break
            time.sleep(POLL_SECONDS)
    finally:
        if live:
            live.stop()
    show(manifest, runs, console)
    return runs


def show(manifest: Manifest, runs: list[RunState], console: Console) -> None:
    """The whole table, and below it what went wrong."""
    console.print(sweep_table(manifest, runs))
    failed = failures(manifest, runs)
    if failed:
        console.print(failed)


def how_to_come_back(folder: Path) -> str:
    """The commands for a sweep that goes on without anyone watching."""
    return (
        f"The runs go on. {as_typed('python -m launchers')} status {folder} shows them, and resume, cancel, "
        "logs, collect in its place do what they say; the same command as before waits again."
    )
