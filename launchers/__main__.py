"""Commands for a sweep that was submitted: `python -m launchers COMMAND outputs/SWEEP`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_exp.config.launcher_settings import with_changes
from dino_exp.config.plugins import load, named_by
from dino_exp.config.stored import DamagedConfigError, from_plain, read_plain
from dino_exp.console import Console, a_console
from dino_exp.errors import FAILED, INTERRUPTED, UserError, program, refuse, warn
from dino_exp.installation import as_typed
from dino_exp.runs import former_names
from dino_exp.runs.manifest import Manifest
from launchers import table
from launchers.approval import approve, remember
from launchers.children import tail
from launchers.launch import announce
from launchers.states import Observer, RunState
from launchers.stopping import stop
from launchers.submission import Wanted, submit
from launchers.watch import how_to_come_back, print_sweep, wait


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(
        prog=as_typed("python -m launchers"), description=as_typed((__doc__ or "").splitlines()[0])
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    helps = {
        "status": "show the state of each run; exit code 1 if any failed or is lost",
        "wait": "show a live table until no run is active; exit code as for status",
        "collect": "write runs.csv and runs.parquet: overrides, verdicts, k-NN, diagnostics, hours",
        "resume": "submit lost, stopped and failed runs again; key=value changes keys of hydra.launcher",
        "cancel": "stop all runs, or those whose name or overrides contain all WORDS; they save first",
        "logs": "show the last log lines of all unfinished runs, or of those that match all WORDS",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("folder", type=Path, help="a sweep, e.g. outputs/demo_sweep_teacher_temp")
        if name == "resume":
            command.add_argument("changes", nargs="*", metavar="key=value", help="e.g. partition=long")
            command.add_argument(
                "--yes", action="store_true", help="run the commands of another person's sweep without asking"
            )
        if name in ("cancel", "logs"):
            command.add_argument("words", nargs="*", metavar="WORDS", help="e.g. teacher_temp=0.04")
        if name == "logs":
            command.add_argument("-n", "--lines", type=int, default=20, help="lines of each log (default 20)")
    arguments = parser.parse_args(argv)
    console = a_console()
    manifest = Manifest.load(arguments.folder)
    if manifest.problems:
        found = " ".join(manifest.problems[:3])
        warn([f"{manifest.folder}: {found} The sweep's command, typed again, writes manifest.json anew."])
    if arguments.command == "resume":
        return resume(manifest, arguments.changes, arguments.yes, console)
    if arguments.command == "wait":
        return wait_with_table(manifest, console)
    runs = Observer().observe(manifest)
    if arguments.command == "status":
        print_sweep(manifest, runs, console)
        return exit_code(runs)
    if arguments.command == "collect":
        for path in table.collect(manifest, runs):
            console.print(f"{path}: {table.number_of_runs(len(runs))}", soft_wrap=True)
        return 0
    named = matching(runs, arguments.words)
    if arguments.command == "cancel":
        return cancel(manifest.folder, named, console)
    shown = [run for run in named if arguments.words or run.state != "finished"]
    return print_logs(manifest, shown, arguments.lines, console)


def exit_code(runs: Sequence[RunState]) -> int:
    """Return 1 if a run failed or is lost, otherwise 0."""
    return FAILED if any(run.state in ("failed", "lost") for run in runs) else 0


def wait_with_table(manifest: Manifest, console: Console) -> int:
    """Wait until no run is active or Ctrl-C is pressed, and return the exit code."""
    try:
        return exit_code(wait(manifest.folder, manifest.runs.keys(), console))
    except KeyboardInterrupt:
        console.print(f"Stopped waiting. {how_to_come_back(manifest.folder)}")
        return INTERRUPTED


def matching(runs: Sequence[RunState], words: Sequence[str]) -> list[RunState]:
    """Return the runs whose name or overrides contain all of `words`.

    Raises:
        UserError: No run does.
    """
    found = [run for run in runs if all(word in " ".join([run.name, *run.entry.overrides]) for word in words)]
    if not found:
        raise UserError(f"{' '.join(words)}: no run of this sweep has that in its name or overrides.")
    return found


def resume(manifest: Manifest, changes: Sequence[str], yes: bool, console: Console) -> int:
    """Submit again all runs that are neither active, finished nor pruned, with changed launcher settings.

    A run whose `config.yaml` is damaged is named, and trained by the sweep's command, which writes it anew.
    Commands in the manifest, and modules that its runs import, are shown if this user does not know them, and
    run only if he agrees, or with `yes`.
    """
    words, renamed = former_names.TABLE.present_words([f"hydra.launcher.{change}" for change in changes])
    warn(renamed)
    changes = [word.removeprefix("hydra.launcher.") for word in words]
    settings = with_changes(manifest.launcher, manifest.settings, changes)
    stored: dict[str, dict[str, Any]] = {}
    runs, damaged, plugins = [], [], dict[str, str]()
    pruned = [name for name, entry in manifest.runs.items() if entry.pruned]
    for name in (each for each in manifest.runs if each not in pruned):
        directory = manifest.directory(name)
        try:
            stored[name] = read_plain(directory)
            plugins |= named_by(stored[name], directory.read_status())
        except DamagedConfigError as error:
            damaged.append(str(error))
    approve(manifest.folder, manifest.settings, changes, yes, console, plugins)
    for module, folder in plugins.items():
        load([module], folder)
    for name, config in stored.items():
        overrides = tuple(manifest.runs[name].overrides)
        try:
            runs.append(Wanted(name, overrides, from_plain(manifest.directory(name), config)))
        except DamagedConfigError as error:
            damaged.append(str(error))
    remember(settings, plugins)
    submission = submit(manifest.folder, manifest.launcher, settings, runs)
    announce(console, submission)
    if pruned:
        console.print(f"Skipped: {len(pruned)} pruned by a search.")
    if submission.submitted:
        console.print(how_to_come_back(manifest.folder))
    return refuse(damaged) if damaged else 0


def cancel(folder: Path, named: Sequence[RunState], console: Console) -> int:
    """Stop the active ones of some runs. They save first, and `resume` continues them."""
    stopped, shared = stop(folder, [run.name for run in named])
    console.print(f"{folder}: cancelled {table.number_of_runs(len(stopped))}.")
    if shared:
        console.print(
            f"Job {', '.join(shared)} also has runs that were not named; the named ones continue until it is "
            "requeued."
        )
    return 0


def print_logs(manifest: Manifest, runs: Sequence[RunState], lines: int, console: Console) -> int:
    """Print the last lines of the runs' logs."""
    if not runs:
        console.print("No run is left to show; words that a run's name or overrides contain choose others.")
    for run in runs:
        console.print(f"\n{run.label}: {run.state}", style="bold")
        log = manifest.directory(run.name).path / "log.txt"
        text = tail(log, lines) or table.why(manifest, run, lines) or "There is no log yet."
        console.print(text, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
