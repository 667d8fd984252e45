"""A run from its configuration to its summary: start or resume, train, and write how it ended."""

from __future__ import annotations

import datetime
import logging
import socket
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from dino_exp import machine
from dino_exp.config import data_content, targets
from dino_exp.config.identity import differing_keys, run_ids
from dino_exp.config.plugins import code_of
from dino_exp.config.schema import Config
from dino_exp.config.stored import DamagedConfigError, read_if_possible, read_plain, write_config
from dino_exp.console import Console, log_lines_on, table
from dino_exp.data.content import Content, key_of
from dino_exp.data.source import Splits
from dino_exp.errors import FAILED, UserError, known_words
from dino_exp.eval.periodic import main_figures
from dino_exp.metrics import numbers
from dino_exp.parallel import distributed
from dino_exp.parallel.interrupt import Interrupt, Stopped
from dino_exp.runs import environment
from dino_exp.runs.metrics_lines import read_metrics
from dino_exp.runs.revision import git_revision
from dino_exp.runs.run_directory import OthersRunDirectory, RunDirectory, end_of_attempt, job_id
from dino_exp.tracker import NoTracker, RunInfo, Tracker, tracker_id_of
from dino_exp.training import checkpoint, forks, same_run
from dino_exp.training.closing import baseline, draw, draw_crops
from dino_exp.training.progress import RunProgress
from dino_exp.training.sharing import sharing_batches
from dino_exp.training.tables import before_and_now, conclude, introduce
from dino_exp.training.trainer import Trainer

log = logging.getLogger(__name__)

CLOSING_SECONDS = 5.0
"""How long the last plots may take after a stop signal, so that a run that has all its steps can finish."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    state: str
    """finished, preempted, collapsed (`trainer.on_collapse=stop`) or failed."""
    exit_code: int
    directory: Path
    message: str
    """Verdict and k-NN, or the error."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Those of its end: knn_top1, loss, ..."""


def train(cfg: Config, path: Path, group: str | None = None) -> RunResult:
    """Start, resume or show the run of `cfg` in the directory `path`.

    All processes of a run call it with the same arguments; rank 0 decides and writes.

    Args:
        cfg: a validated configuration.
        path: the run directory; with `resume=never` one beside it if it already holds a run.
        group: name of the sweep, for the tracker.

    Raises:
        UserError: the configuration or a file is invalid; nothing was written.
    """
    console, cfg = distributed.console_for_a_run(), data_content.settled(cfg)
    wanted, anew, is_main = path, cfg.resume == "never", distributed.is_main()
    if anew:
        path = Path(distributed.from_main(str(RunDirectory.beside(path).path)))
    directory = RunDirectory(path) if is_main else OthersRunDirectory(path)
    with distributed.agreed():
        refuse_foreign(directory, cfg)
    ended = distributed.from_main(directory.read_status().get("state"))
    ended = ended if same_run.has_ended(ended, cfg) else None
    if ended and distributed.from_main(
        has_summary(directory) or not (directory.checkpoints / "last.pt").exists()
    ):
        return show_ended(directory, cfg, console)
    begun = distributed.from_main(checkpoint.newest(directory.checkpoints) is not None)
    with log_lines_on(console):
        try:
            with distributed.agreed():
                splits, contents = images_of(cfg, directory, begun)
                device = machine.choose_device(cfg.trainer.device)
                machine.keep_freed_memory()
                machine.use_threads(device, machine.choose_workers(cfg.trainer.num_workers, device))
                trainer = Trainer(cfg, splits, device)
                if getattr(cfg, "fork_from", None) and not begun:
                    forks.begin(trainer)
                elif getattr(cfg, "init_from", None) and not begun:
                    trainer.begin_with_weights()
                if begun and contents:
                    same_run.refuse_other_length(directory, trainer.plan.stop_step)
                tracker: Tracker = targets.build(cfg.tracker) if is_main else NoTracker()
            cfg.data_content = distributed.from_main(key_of(contents))
            with distributed.agreed():
                if anew and is_main:
                    directory = RunDirectory.held_beside(wanted)
                else:
                    directory.hold()
            path = Path(distributed.from_main(str(directory.path)))
            directory = directory if is_main else OthersRunDirectory(path)
            # until the end: torchrun sends the survivors of a failure SIGTERM while they write their state
            with Interrupt() as interrupt:
                return _run(directory, trainer, contents, tracker, console, group, interrupt, ended)
        finally:
            directory.release()


def images_of(cfg: Config, directory: RunDirectory, begun: bool) -> tuple[Splits, dict[str, Content]]:
    """Return the images of a run and, in rank 0, their content.

    Raises:
        UserError: they cannot be used, or are not those that the run was trained on.
    """
    if not distributed.is_main():
        return targets.images_of(cfg.data), {}
    splits, contents = data_content.load(cfg)
    same_run.refuse_changed(directory, cfg, contents, begun)
    return splits, contents


def refuse_foreign(directory: RunDirectory, cfg: Config) -> None:
    """Raise UserError if the directory holds another or a newer version's run, or files that are no run's."""
    directory.read_status()
    directory.refuse_others_files()
    if not directory.config_file.exists():
        return
    try:
        stored: Any = read_plain(directory)
    except DamagedConfigError:
        begun = (directory.checkpoints / "last.pt").exists()  # and is compared when it is restored
        if not begun and not directory.path.name.startswith(tuple(run_ids(cfg))):
            raise
        stored = cfg
    different = differing_keys(stored, cfg)
    if different.keys() == {"data_content"} and distributed.is_main():
        raise UserError(same_run.changed(directory, same_run.recorded(directory), data_content.contents(cfg)))
    if different:
        lines = "".join(
            f"\n  {key}: {there!r} there, {here!r} here" for key, (there, here) in different.items()
        )
        raise UserError(
            f"{directory.path}: this directory holds a run with another configuration:{lines}\n"
            "Choose another directory, or do not set hydra.run.dir: the default depends on the configuration."
        )


def has_summary(directory: RunDirectory) -> bool:
    """Return whether a run that has ended can be shown from its summary."""
    return {"state", "verdict", "evidence", "steps"} <= directory.read_summary().keys()


def show_ended(directory: RunDirectory, cfg: Config, console: Console) -> RunResult:
    """Print the summary of a run that has already ended; without one, what the other files say."""
    state, summary = directory.read_status()["state"], directory.read_summary()
    if not has_summary(directory):
        last = next(reversed(read_metrics(directory.metrics_file)), {"step": 0})
        lost = {"verdict": "unknown", "evidence": "summary.json is damaged", "steps": last["step"]}
        summary = lost | last | summary
    verdict, knn = summary["verdict"], summary.get("knn_top1")
    rows = {"verdict": verdict, "because": summary["evidence"]}
    if knn is not None:
        rows |= before_and_now(summary, "knn_top1", knn)
    place = OmegaConf.select(OmegaConf.create(read_if_possible(directory.config_file, [])), "data.root")
    if cfg.data_content and place != cfg.data.root:
        rows["images"] = f"those of {place}; {cfg.data.root} has the same"
    rows |= {"steps": f"{summary['steps']:,}", "directory": str(directory.path)}
    console.print(table(f"This run has already {state}", rows))
    console.print("Pass resume=never to train it again, in another directory.")
    return RunResult(state, 0, directory.path, f"already {state}; {verdict}", numbers(summary))


def _run(
    directory: RunDirectory,
    trainer: Trainer,
    contents: dict[str, Content],
    tracker: Tracker,
    console: Console,
    group: str | None,
    interrupt: Interrupt,
    ended: str | None,
) -> RunResult:
    is_main, newest = distributed.is_main(), distributed.from_main(checkpoint.newest(directory.checkpoints))
    resumed = newest is not None or trainer.parent is not None
    if ended and is_main:
        log.warning(
            "This run has %s, but its summary is lost: it is made again from the last checkpoint.", ended
        )
    with distributed.agreed():
        if newest:
            checkpoint.restore(trainer, directory.checkpoints / newest)
    if newest == checkpoint.PREVIOUS:
        log.warning("checkpoints/last.pt is missing; %s is used, the one before it.", newest)
    if is_main:
        same_run.record(directory, contents)
        if trainer.parent is not None:
            forks.found(directory, trainer)
        begin(directory, trainer, tracker, group, resumed)
    distributed.from_main(None)  # the directory is complete before any process may fail
    try:
        with sharing_batches(trainer) as shared:
            introduce(trainer, directory, console, resumed, shared)
            state, summary = _trained(directory, trainer, tracker, console, interrupt, ended)
        if state != "preempted":
            directory.write_summary(summary)
        if state == "failed" and is_main:
            directory.write_traceback(summary["evidence"] + "\n")
        directory.write_status(state=state, step=trainer.step)
    except BaseException as error:
        state = "preempted" if isinstance(error, KeyboardInterrupt) else "failed"
        first = state != "failed" or note_failure(directory, error)
        with suppress(OSError):  # where the disk has failed, this may fail too
            directory.write_status(state=state)
        tracker.finish({"state": state, "error": str(error)}, exit_code=1)
        if first or isinstance(error, UserError):
            raise
        log.error("Another process of this run failed first: see %s.", directory.traceback_file)
        raise distributed.OtherFailedError(str(error)) from None
    exit_code = {"failed": FAILED, "preempted": 128 + (interrupt.signal or 0)}.get(state, 0)
    tracker.finish(summary | {"state": state}, exit_code)
    message = conclude(trainer, directory, console, state, summary)
    return RunResult(state, exit_code, directory.path, message, numbers(summary))


def _trained(
    directory: RunDirectory,
    trainer: Trainer,
    tracker: Tracker,
    console: Console,
    interrupt: Interrupt,
    ended: str | None,
) -> tuple[str, dict[str, Any]]:
    """Train and draw; return the state of the run and the content of `summary.json`."""
    is_main = distributed.is_main()
    try:
        if trainer.step == 0 or trainer.parent is not None:
            interrupt.at_once(lambda: draw_crops(trainer, directory, tracker) if is_main else None)
        with RunProgress(console, trainer.plan.stop_step) as progress:
            # a run that has collapsed without a summary is closed again, and not trained further
            collapsed = ended == "collapsed"
            state = "collapsed" if collapsed else trainer.fit(directory, tracker, progress, interrupt)
        directory.write_status(step=trainer.step)
        summary = summarize(trainer, state)
        if state in ("finished", "collapsed"):
            summary |= interrupt.at_once(
                lambda: baseline(trainer) | (draw(trainer, directory, tracker) if is_main else {}),
                grace=CLOSING_SECONDS,
            )
        return state, summary
    except Stopped:
        return "preempted", {}


def begin(
    directory: RunDirectory, trainer: Trainer, tracker: Tracker, group: str | None, resumed: bool
) -> None:
    """Write the files that a run directory has from the start, and start the tracker."""
    cfg, before, code = trainer.cfg, directory.read_status(), git_revision()
    plugins = code_of(cfg)
    if before.get("git_revision") not in (None, code["git_revision"]):
        log.warning("The code has changed since this run was started at revision %s.", before["git_revision"])
    for module, about in plugins.items():
        known = before.get("plugins", {}).get(module)
        if isinstance(known, dict) and known.get("sha256") != about["sha256"]:
            log.warning("The code of plugins=[%s] has changed since this run was started.", module)
    if resumed and before.get("step", 0) > trainer.step:
        reached = f"{before['step']:,}"
        log.info("The run had reached step %s; what follows its checkpoint is trained again.", reached)
    tracker_id = tracker_id_of(directory.path, before)
    write_config(directory, cfg)
    lines = directory.rewind_metrics(trainer.step - trainer.due if resumed else -1, trainer.logged)
    trainer.logged.clear()
    trainer.logged.extend(lines)
    directory.traceback_file.unlink(missing_ok=True)
    if before.get("state") == "collapsed":  # and goes on; what it says is not its end any more
        directory.summary_file.unlink(missing_ok=True)
    directory.write_status(
        state="running",
        step=trainer.step,
        total_steps=trainer.plan.stop_step,
        attempt=before.get("attempt", 0) + 1,
        attempts=[*attempts_before(before), this_attempt(trainer, directory)],
        tracker_id=tracker_id,
        run_id=directory.path.name,
        **code,
        **({"plugins": plugins} if plugins else {}),
    )
    tracker.start(
        RunInfo(
            directory=directory.path,
            name=directory.path.name,
            group=group,
            config=cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True)),
            tracker_id=tracker_id,
            resume_step=trainer.step - trainer.due,
        )
    )


def attempts_before(status: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the earlier attempts; the last of them ended at its last heartbeat."""
    attempts = status.get("attempts", [])
    if attempts and "until" not in attempts[-1]:
        attempts[-1] |= {"until": end_of_attempt(status), "to_step": status.get("step")}
    return attempts


def this_attempt(trainer: Trainer, directory: RunDirectory) -> dict[str, Any]:
    """Return when, where and from which step this attempt starts; times in seconds since 1970."""
    return {
        "began": directory.opened,
        "from_step": trainer.step,
        "host": socket.gethostname(),
        "job": job_id(),
        "processes": distributed.count(),
        "device": trainer.device.type,
    }


def note_failure(directory: RunDirectory, error: BaseException) -> bool:
    """Write the traceback, and below it a known error in words; return whether this process failed first.

    If another one did, this one has only lost its connection.
    """
    text = traceback.format_exc() + (f"{words}\n" if (words := known_words(error)) else "")
    if distributed.several():
        who = f"process {distributed.rank()} of {distributed.count()} on {socket.gethostname()}"
        text = f"{who}:\n{text}"
    try:
        return directory.write_traceback(text) or not distributed.several()
    except OSError:
        return True


def summarize(trainer: Trainer, state: str) -> dict[str, Any]:
    """Return the content of `summary.json`, without what `closing` adds."""
    verdict = trainer.judge.verdict
    final = {} if not trainer.last_metrics else {"final": trainer.last_metrics}
    trained = max(trainer.training_seconds, 1e-9)
    began_as = "initial" if getattr(trainer.cfg, "init_from", None) else "untrained"
    return {
        "state": state,
        "verdict": verdict.word,
        "evidence": verdict.evidence,
        "knn_top1": trainer.last_metrics.get("knn_top1"),
        "student_knn_top1": trainer.last_metrics.get("student_knn_top1"),
        "best_knn_top1": None,
        f"{began_as}_knn_top1": None,
        **main_figures(trainer.last_metrics),
        **{f"best_{name}": value for name, value in trainer.evaluations.best.items()},
        **{f"{began_as}_{name}": value for name, value in main_figures(trainer.evaluations.first).items()},
        "steps": trainer.step,
        "images_per_second": trainer.step * trainer.plan.batch_size / trained,
        "wall_seconds": trainer.seconds,
        "peak_memory_mib": machine.peak_memory_mib(trainer.device),
        "corrupt_images": trainer.unreadable.names(),
        "ended": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": environment.environment(trainer.device) | {"processes": distributed.count()},
        **final,
    }
