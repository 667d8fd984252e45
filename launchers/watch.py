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


class Watch:
    """A view of a sweep: in a terminal a live table, elsewhere a line whenever the state of a run changes."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        self.manifest = Manifest(folder)
        self._observer = Observer()
        self._before: dict[str, str] = {}
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_interactive else None
        )

    def __enter__(self) -> Watch:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def look(self, names: Collection[str]) -> list[RunState]:
        """Show and return the present states of the runs `names`."""
        self.manifest = Manifest.load(self.folder)
        runs = [run for run in self._observer.observe(self.manifest) if run.name in names]
        if self._live:
            room = max(3, self.console.height - OTHER_LINES)
            self._live.update(runs_table(self.manifest, runs, room), refresh=True)
        for run in runs:
            if not self._live and self._before.get(run.name) != run.state:
                self.console.print(f"{run.label}: {run.state}")
            self._before[run.name] = run.state
        return runs


def wait(folder: Path, names: Collection[str], console: Console) -> list[RunState]:
    """Show the sweep until none of the runs `names` is active, and return their final states."""
    with Watch(folder, console) as watch:
        runs = watch.look(names)
        while any(run.active for run in runs):
            time.sleep(POLL_SECONDS)
            runs = watch.look(names)
    print_sweep(watch.manifest, runs, console)
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
