"""The command line of `dino-exp`, of which `inspect` is the one subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from dino_exp.console import a_console, log_lines_on
from dino_exp.errors import INTERRUPTED, program
from dino_exp.installation import as_typed

PROGRAMS = """dino-exp inspect PATH   look at images that nobody has seen: dino-exp inspect --help
dino-train              train, sweep and search: dino-train --help
dino-evaluate           evaluate a run or any weights: dino-evaluate --help
dino-report             write a report on a run or a sweep: dino-report --help
dino-export             write a run's network as a file for timm, torch.hub, ...: dino-export --help
dino-sweep              status, logs, resume and cancel of a sweep: dino-sweep --help"""


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run `dino-exp`, and return its exit code: without a subcommand, print what there is."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["inspect"]:
        return run(argv[1:])
    parser = argparse.ArgumentParser(
        prog="dino-exp",
        usage="dino-exp inspect PATH [--write NAME]",
        description=PROGRAMS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", choices=["inspect"], help=argparse.SUPPRESS)
    parser.parse_args(argv)
    parser.print_help()
    return 0


@program
def inspect_main(argv: Sequence[str] | None = None) -> int:
    """Run `dino-exp inspect`, and return its exit code."""
    return run(list(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Look at the images, print what was found, and write a sheet of crops."""
    arguments = _parser().parse_args(argv)
    # late, as torch and Matplotlib come with them, which help and errors need not wait for
    from dino_exp.inspection.crops_sheet import write_sheet
    from dino_exp.inspection.findings import print_findings
    from dino_exp.inspection.measuring import inspect
    from dino_exp.inspection.recipe import experiment_path, write

    console = a_console()
    if arguments.write is not None:
        experiment_path(arguments.write)  # before minutes of looking
    try:
        with log_lines_on(console):
            inspection = inspect(arguments.path, arguments.images, console)
        print_findings(inspection.measured, console)
        write_sheet(inspection, console)
        if arguments.write is not None:
            write(inspection.measured, arguments.write, console)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=as_typed("python -m dino_exp.inspection"),
        description="Look at a set of images, and print their number, sizes, formats, channels, depth, "
        "ranges of values, mean and deviation, which of them cannot be read, duplicates, and how long "
        "decoding takes.",
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a folder of images or of class folders, a list of images (.txt), tar shards, a Hugging Face "
        "set, or one image",
    )
    parser.add_argument(
        "--images",
        type=_positive,
        metavar="N",
        help="how many images are decoded, evenly spread (default: as many as take minutes)",
    )
    parser.add_argument(
        "--write",
        metavar="NAME",
        help="write conf/experiment/NAME.yaml, an experiment for these images and this machine, with the "
        "reason for each value; if it exists, compare with it",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number of images from 1 on")
    return int(text)
