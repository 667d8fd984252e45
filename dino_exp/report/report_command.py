"""The command line of `report.py`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from types import ModuleType

from dino_exp.atomic import is_locked
from dino_exp.console import Console
from dino_exp.errors import UserError, program, refusing
from dino_exp.installation import as_typed
from dino_exp.report import evaluation_records
from dino_exp.report.loading import RUN_FILES, load, run_folders
from dino_exp.report.run_data import UNFINISHED, RunData, SweepData
from launchers.one_search import LOCK as SEARCH_LOCK
from launchers.table import counts

INTERRUPTED = 130
LIBRARIES = ("altair", "vl_convert", "jinja2")


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code: 2 for a user's error.

    `doctor` returns 1 for a collapse or divergence.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ["doctor"]:
            return run_doctor(argv[1:])
        arguments = parser().parse_args(argv)
        for path in (arguments.folder, *(arguments.compare or ())):
            if path is not None and path.is_file():
                raise UserError(
                    f"{path}: a file; give the folder of a run or of a sweep, e.g. {path.parent}. "
                    f"For a log, use {as_typed('python report.py')} doctor {path}."
                )
        if arguments.compare:
            if arguments.folder is not None or arguments.watch is not None:
                parser().error("--compare A B cannot be combined with FOLDER or --watch")
            first, second = arguments.compare
            return compare_folders(first, second, arguments.out)
        if arguments.folder is None:
            parser().error("give the FOLDER of a run or a sweep, --compare A B, or doctor LOG")
        if arguments.watch is not None:
            return watch(arguments.folder, arguments.out, arguments.watch)
        page_module()
        print_files(write(load(arguments.folder), arguments.out))
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    result = argparse.ArgumentParser(
        prog=as_typed("python report.py"),
        description="Write FOLDER/report/index.html, a report on a run or a sweep, and its figures as PNG "
        "and SVG.",
        epilog=f"{as_typed('python report.py')} doctor LOG [--out-dim K] says what is wrong with a run, and "
        "what to try first; LOG is a run directory, or another code's log of JSON lines.",
    )
    result.add_argument(
        "folder", type=Path, nargs="?", metavar="FOLDER", help="a run or a sweep, e.g. outputs/demo_sweep_lr"
    )
    result.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A", "B"),
        help="compare two runs or two sweeps: curves, configuration, k-NN with its spread over seeds",
    )
    result.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: FOLDER/report)")
    result.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=15.0,
        metavar="SECONDS",
        help="check every SECONDS (default 15) for changes and write the report again, until all runs have "
        "finished; waits for the first run. An open page reloads itself",
    )
    return result


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text} is not a number of seconds; type {as_typed('python report.py')} {text} --watch, or "
            "--watch 15"
        ) from None
    if not 1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 86400 seconds")
    return seconds


def page_module() -> ModuleType:
    """Return the module that writes pages; its library loads while the caller reads the folder.

    Raises:
        UserError: if a library is missing.
    """
    try:
        from dino_exp.plots import drawing
        from dino_exp.report import page
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in LIBRARIES:
            raise UserError(
                f"{error.name} is missing; reports need pip install 'dino-exp[report]'."
            ) from None
        raise
    drawing.library_ahead()
    return page


def write(data: RunData | SweepData, out: Path | None, refresh: float | None = None) -> list[Path]:
    """Write the report of what was loaded, and return its files, the page first.

    Raises:
        UserError: if a library is missing, or the folder cannot be written.
    """
    pages = page_module()
    folder = out or own_folder(data.path)
    with refusing("give another folder with --out DIR"):
        return pages.write_report(data, folder, refresh)


def own_folder(folder: Path) -> Path:
    """Return the folder for reports in the folder of a run or a sweep; a link, it might lead anywhere."""
    reports = folder / "report"
    if reports.is_symlink():
        raise UserError(f"{reports}: a link, which is not followed. Give the folder with --out DIR.")
    return reports


def print_files(paths: Sequence[Path]) -> None:
    """Print the paths of what was written, one a line."""
    console = Console(soft_wrap=True)
    for path in paths:
        console.print(str(path))


def compare_folders(first: Path, second: Path, out: Path | None) -> int:
    """Print and write how two runs or sweeps differ, and return the exit code."""
    from dino_exp.report.compare.comparison import compare, print_comparison

    page_module()
    comparison = compare(first, second)
    print_comparison(comparison, Console())
    from dino_exp.report.compare.compare_figures import write_comparison

    name = "_and_".join(each.replace(os.sep, "_")[-80:] for each in comparison.names)
    folder = out or own_folder(first) / name
    with refusing("give another folder with --out DIR"):
        print_files(write_comparison(comparison, folder))
    return 0


def run_doctor(argv: Sequence[str]) -> int:
    """Run `report.py doctor`, and return 1 for a collapse or divergence that is not rescued, else 0."""
    from dino_exp.report.doctor.doctor_command import doctor

    words = argparse.ArgumentParser(
        prog=as_typed("python report.py doctor"),
        description="Say what is wrong with a run, and what to try first.",
    )
    words.add_argument("log", type=Path, metavar="LOG", help="a run directory, or a log of JSON lines")
    words.add_argument("--out-dim", type=int, metavar="K", help="number of prototypes, if not in the log")
    words.add_argument(
        "--rescue",
        action="store_true",
        help="fork a collapsed run of ours from before its onset, once with each of the three likeliest "
        "remedies, train these in this machine's queue, and say which recover (1 if none does)",
    )
    arguments = words.parse_args(argv)
    if arguments.rescue:
        from dino_exp.report.doctor.rescue import rescue

        return rescue(arguments.log, Console())
    return doctor(arguments.log, arguments.out_dim, Console())


def watch(folder: Path, out: Path | None, seconds: float) -> int:
    """Write the report at each change, until no run and no search is active; Ctrl-C ends it.

    Prints a line with the states of the runs whenever it has written, and all files at the end.
    """
    page_module()
    console, before = Console(soft_wrap=True), None
    while True:
        now = fingerprint(folder)
        data = load(folder) if folder.exists() else SweepData(folder)
        runs = data.runs if isinstance(data, SweepData) else [data]
        active = is_locked(folder / SEARCH_LOCK) or any(run.state in UNFINISHED for run in runs)
        finished = bool(runs) and not active
        states = [run.state for run in runs]
        if (state := (now, finished, states)) != before and runs:
            files = write(data, out, None if finished else seconds)
            console.print(f"{files[0]}, {time.strftime('%H:%M:%S')}: ", counts(states), sep="")
            if finished:
                print_files(files[1:])
        elif state != before:
            console.print(f"{folder}: no run yet; waiting for the first one.")
        if finished:
            return 0
        before = state
        time.sleep(seconds)


def fingerprint(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and time of each file that a report reads."""
    folders = [folder, *run_folders(folder)] if folder.is_dir() else []
    found = []
    names = (*RUN_FILES, evaluation_records.FILE, "manifest.json", "boundary.json")
    for each, name in product(folders, names):
        with suppress(OSError):
            known = (each / name).stat()
            found.append((f"{each.name}/{name}", known.st_size, known.st_mtime_ns))
    return found
