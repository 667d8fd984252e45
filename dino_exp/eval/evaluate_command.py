"""The command line of `evaluate.py`: check everything, then run each evaluation and write its record."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from dino_exp.atomic import complete_folder
from dino_exp.config.compose_evaluation import check, own_size
from dino_exp.config.evaluate_config import EvaluateConfig
from dino_exp.config.plugins import load_as_rank_zero
from dino_exp.console import Console
from dino_exp.errors import FAILED, USER_ERROR, UserError, in_words, refuse, refusing, report, warn
from dino_exp.parallel.processes import stop_signals
from dino_exp.parallel.rank_zero import in_all_processes
from dino_exp.paths import expanded
from dino_exp.runs.run_directory import RunDirectory, refuse_links
from dino_exp.streams import protect

if TYPE_CHECKING:  # importing torch takes seconds, which errors and --help need not wait for
    from dino_exp.eval.extraction import Extracted
    from dino_exp.eval.opening import Origin
    from dino_exp.eval.subject import Evaluation, Subject


SHOWN_FILES = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Check and run a command line, and return the exit code.

    0: done. 2: the configuration, a file or a data set is invalid; nothing of that evaluation was written.
    """
    protect()
    words = list(sys.argv[1:] if argv is None else argv)
    return in_all_processes(lambda: command_line(words), follow)


def follow() -> int:
    """Evaluate what rank 0 sends, and return the exit code that it sends in the end."""
    from dino_exp.parallel import distributed

    order: Any = distributed.from_main(FAILED)
    while not isinstance(order, int):
        cfg = cast(DictConfig, OmegaConf.create(order))
        load_as_rank_zero(cfg.plugins)
        attempt(cfg)
        order = distributed.from_main(FAILED)
    return order


def command_line(argv: list[str]) -> int:
    """Check and run a command line in rank 0."""
    wants_help = not argv or any(word in ("--help", "-h") for word in argv)
    checked = check([word for word in argv if word not in ("--help", "-h")])
    if wants_help:
        from dino_exp.config.evaluate_help import print_help

        print_help(Console(), checked)
        return 0 if argv else USER_ERROR
    if "--cfg" in argv and checked.cfg is not None:
        sys.stdout.write(OmegaConf.to_yaml(checked.cfg))
        return refuse(checked.problems) if checked.problems else 0
    warn(checked.warnings)
    if checked.problems or checked.cfg is None:
        return refuse(checked.problems)
    from dino_exp.parallel import distributed

    distributed.from_main(OmegaConf.to_yaml(checked.cfg, resolve=True))
    return attempt(checked.cfg)


def attempt(cfg: DictConfig) -> int:
    """Evaluate, and turn whatever happens into an exit code."""
    from dino_exp.parallel import distributed

    previous = {number: signal.signal(number, stop) for number in stop_signals()}
    try:
        return evaluate(cast(EvaluateConfig, cfg))
    except UserError as error:
        if distributed.is_main():
            refuse([str(error)])
        if distributed.several() and not isinstance(error, distributed.AgreedError):
            distributed.leave(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt as stopped:
        code = 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
        warn(["stopped; nothing of the evaluation that was running is kept, those before it are written."])
    except Exception as error:
        report(error)
        code = FAILED
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if distributed.several():
        distributed.leave(code)
    return code


def stop(number: int, frame: FrameType | None) -> None:
    """Leave whatever is running; of several processes each at once, because the others may never answer."""
    from dino_exp.parallel import distributed

    if distributed.several():
        distributed.leave(128 + number)
    raise KeyboardInterrupt(number)


def evaluate(cfg: EvaluateConfig) -> int:
    """Open the network, check all evaluations, then run them; all processes call it.

    Raises:
        UserError: an evaluation cannot work; nothing was written.
    """
    from dino_exp.config.targets import build_from
    from dino_exp.eval import records
    from dino_exp.eval.extraction import Extracted
    from dino_exp.eval.mirror import mirror
    from dino_exp.eval.opening import open_subject
    from dino_exp.eval.subject import probe_in_words
    from dino_exp.parallel import distributed

    console = Console(soft_wrap=True, quiet=not distributed.is_main())
    with distributed.agreed():
        subject, origin = open_subject(cfg)
        folder = Path()
        if distributed.is_main():
            folder = results_folder(cfg, origin)
            records.read(folder)
    folder = Path(distributed.from_main(str(folder)))
    introduce(console, cfg, subject, origin)
    with distributed.agreed():
        evaluations: dict[str, Evaluation] = {name: build_from(getattr(cfg, name)) for name in cfg.eval}
        blocks = max(cfg.linear.blocks) if "linear" in cfg.eval else 0
        data = Extracted(subject, cfg.data, blocks=blocks, progress=console.is_interactive)
        for evaluation in evaluations.values():
            evaluation.check(subject, data)
        content = content_of(cfg, data) if distributed.is_main() else None
        if content and (probe := probe_in_words(data.images)):
            console.print(f"probe     {probe}\n")
    failed, done = False, []
    for name, evaluation in evaluations.items():
        about = records.about(name, cfg, subject, origin, content)
        try:
            record = run_one(name, evaluation, subject, data, folder, about)
        except UserError as error:
            if distributed.several() and not isinstance(error, distributed.AgreedError):
                raise
            if distributed.is_main():
                refuse([f"{name}: {error}"])
            failed = True
            continue
        if distributed.is_main():
            show(console, record, folder)
            records.add(folder, record)
            done.append(record)
    if distributed.is_main() and done:
        console.print(f"Written to {folder / records.FILE}.")
        mirror(cfg, folder, done, console)
    return USER_ERROR if failed else 0


def content_of(cfg: EvaluateConfig, data: Extracted) -> str | None:
    """Return the key of the images to evaluate on; a line says if the run was trained on others."""
    from dino_exp.config.compose_evaluation import needs_data
    from dino_exp.config.identity import trained_on
    from dino_exp.config.stored import read_plain
    from dino_exp.data import content

    if not any(needs_data(name, cfg) for name in cfg.eval):
        return None
    now = content.contents_of(data.images)
    if cfg.run is not None:
        directory = RunDirectory(expanded(cfg.run))
        own = trained_on(read_plain(directory), by_place=True)
        try:
            before = content.read(directory.data_file) if own == trained_on(cfg, by_place=True) else {}
        except UserError as error:
            before = {}
            warn([str(error)])
        if before and now and (what := content.differences(before, now)):
            warn([f"the images have changed since the run was trained on them: {what}."])
    return content.key_of(now)


def run_one(
    name: str,
    evaluation: Evaluation,
    subject: Subject,
    data: Extracted,
    folder: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Run one evaluation, and return its record. Its files replace earlier ones of the same all at once.

    Another process that runs the same evaluation waits, because both would write the same files.
    """
    from dino_exp.eval import records
    from dino_exp.eval.extraction import lock_of
    from dino_exp.parallel import distributed

    target = folder / records.folder_of(about)
    with lock_of(target):
        began = time.monotonic()
        try:
            with complete_folder(target) if distributed.is_main() else nullcontext(target) as temporary:
                temporary = Path(distributed.from_main(str(temporary)))
                findings = evaluation.evaluate(subject, data, temporary)
            findings.files = [
                (target / path.relative_to(temporary)).relative_to(folder) for path in findings.files
            ]
        finally:
            if distributed.is_main():
                with suppress(OSError):  # evaluations without files leave no folder
                    target.parent.rmdir()
    if about["data"] is not None:
        findings.notes += data.skipped()
    return records.completed(about, findings, time.monotonic() - began, subject)


def results_folder(cfg: EvaluateConfig, origin: Origin) -> Path:
    """Return the run's folder; one below `output_root` for weights, and for a run that cannot be written.

    Raises:
        UserError: it cannot be written either, which is better known before hours of work.
    """
    name = origin.file.stem if cfg.run is None else expanded(cfg.run).resolve().name
    below = expanded(cfg.output_root) / "evaluations" / f"{name[:60]}_{origin.sha256[:8]}"
    if cfg.run is not None:
        run = expanded(cfg.run)
        try:
            refuse_links(run / "evaluations")
            try_writing(run)
            return run
        except OSError as error:
            warn([f"run = {cfg.run}: {in_words(error)}; the results are written to {below}."])
    with refusing("results are written there; choose another output_root"):
        try_writing(below)
    return below


def try_writing(folder: Path) -> None:
    """Raise the OSError of writing into a folder, or where it would be made; nothing is left."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        error.filename = os.fspath(there)  # a temporary name means nothing to a user
        raise


def introduce(console: Console, cfg: EvaluateConfig, subject: Subject, origin: Origin) -> None:
    """Print what is about to be evaluated."""
    precision = str(subject.autocast_type or "float32").removeprefix("torch.")
    size = subject.image_size
    console.print(f"Evaluating {', '.join(cfg.eval)}", style="bold")
    console.print(f"network   {origin.name}")
    console.print(f"backbone  {cfg.backbone.name}: {origin.report}")
    if any(own_size(name, cfg) for name in cfg.eval):
        console.print(f"images    {size} x {size}, the central {subject.crop_ratio:.0%} of the shorter side")
    console.print(f"machine   {subject.device.type}, {precision}\n")


def show(console: Console, record: dict[str, Any], folder: Path) -> None:
    """Print figures, notes and files of one evaluation."""
    from dino_exp import metrics

    console.print(f"{record['evaluation']} ({record['seconds']:,.1f} s)", style="bold")
    words = {metrics.in_words(name): value for name, value in record["figures"].items()}
    width = max(map(len, words), default=0)
    for word, value in words.items():
        console.print(f"  {word:{width}}  {value:.1f} %")
    for note in record["notes"]:
        console.print(f"  {note}", style="dim")
    for name in record["files"][:SHOWN_FILES]:  # complete paths, so that they can be copied
        console.print(f"  {folder / name}")
    if len(record["files"]) > SHOWN_FILES:
        console.print(f"  and {len(record['files']) - SHOWN_FILES} more files")
    console.print()
