"""Submission of a sweep: which of its runs are missing, and which job gets each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from omegaconf import DictConfig

from dino_exp.config.batch_stream import stream_settings
from dino_exp.config.data_content import settled
from dino_exp.config.identity import identities
from dino_exp.config.plugins import code_of, refuse_in_jobs
from dino_exp.config.schema import Config
from dino_exp.config.stored import write_config
from dino_exp.config.sweep_runs import Run
from dino_exp.errors import UserError, refusing
from dino_exp.runs.manifest import Entry, Manifest, changing
from dino_exp.runs.revision import git_revision
from dino_exp.runs.run_directory import RunDirectory, refuse_links
from dino_exp.tracker import tracker_id_of
from dino_exp.training.same_run import directory_name, has_ended
from launchers import local, slurm
from launchers.states import Observer, RunState

Item = TypeVar("Item")


@dataclass(frozen=True)
class Wanted:
    """A run that was asked for."""

    name: str
    """Name of its directory."""
    overrides: tuple[str, ...]
    """The overrides that set it apart from the other runs of the sweep."""
    cfg: Config | DictConfig
    repeats: str | None = None
    """Name of the run that it trains again, in a new directory beside it."""

    def anew(self, folder: Path) -> Wanted:
        """Return it with the name of a directory that has no run yet, if it is to have a new one."""
        if self.repeats is None:
            return self
        return replace(self, name=RunDirectory.beside(folder / self.repeats).path.name)

    @property
    def config_hash(self) -> str:
        """The first of `config_hashes`."""
        return self.config_hashes[0]

    @cached_property
    def config_hashes(self) -> list[str]:
        """SHA-256 of all values that can change the result, and of what stood for them in its other ids."""
        texts = (json.dumps(each, sort_keys=True) for each in identities(self.cfg))
        return [hashlib.sha256(text.encode()).hexdigest() for text in texts]


@dataclass
class Submission:
    """The result of submitting a sweep."""

    manifest: Manifest
    submitted: list[str]
    """Names of the runs that a job or the queue has now been given."""
    skipped: dict[str, str]
    """The other runs by name, and the reason: their state, or that they have failed too often."""


def wanted(checked: Sequence[Run], folder: Path) -> list[Wanted]:
    """Return the runs of a sweep; with `resume=never` each gets a new directory."""
    runs = []
    for run in checked:
        repeats = run.run_id if run.cfg.resume == "never" else None
        if repeats:
            run.cfg.resume = "auto"  # later attempts must stay in this directory
        name, cfg = repeats or directory_name(folder, run.cfg), settled(run.cfg)
        runs.append(Wanted(name, run.overrides, cfg, repeats).anew(folder))
    return runs


def plan(
    manifest: Manifest, runs: Sequence[Wanted], max_retries: int
) -> tuple[list[Wanted], dict[str, str], set[str]]:
    """Return the runs to submit, the others by name with the reason, and the names of failed runs.

    It changes nothing.
    """
    before = {run.name: run for run in Observer().observe(manifest)}
    missing, skipped = [], {}
    for run in runs:
        refuse_other_configuration(manifest, run)
        reason = reason_to_skip(run, before, manifest, max_retries)
        if reason:
            skipped[run.name] = reason
        else:
            missing.append(run)
    return missing, skipped, {name for name, run in before.items() if run.state == "failed"}


def submit(folder: Path, launcher: str, settings: Mapping[str, Any], runs: Sequence[Wanted]) -> Submission:
    """Submit the missing ones of `runs`, and record in the manifest which job has each; keep all others.

    Raises:
        UserError: The folder cannot be written, a directory belongs to another configuration, or SLURM
            refuses the job.
    """
    for run in runs:
        refuse_in_jobs(run.cfg)
    refuse_unusable_runs(folder, runs)
    if launcher == "slurm":
        slurm.job_folder(folder)
    with refusing("choose another output_root, or have its owner submit it"):
        folder.mkdir(parents=True, exist_ok=True)
        with changing(folder):
            manifest = Manifest.load_or_new(folder)
            runs = [run.anew(folder) for run in runs]  # inside of the lock, so that no other takes the name
            manifest.launcher = launcher
            manifest.settings = {key: value for key, value in settings.items() if key != "_target_"}
            missing, skipped, failed = plan(manifest, runs, settings["max_retries"])
            for run in runs:
                entry = manifest.runs.setdefault(run.name, Entry(list(run.overrides), run.config_hash))
                if not entry.config_hash:  # lost with a damaged manifest
                    entry.overrides, entry.config_hash = list(run.overrides), run.config_hash
            for run in missing:
                prepare(manifest, run)
                manifest.runs[run.name].retries += run.name in failed
            manifest.save()
            if launcher == "slurm" and settings["runs_per_gpu"] > 1:  # which share batches if they can
                missing.sort(key=first_with_its_batches(missing))
            assign_jobs(manifest, settings, [run.name for run in missing])
    if launcher == "local" and missing:
        local.start_queue(folder)
    return Submission(manifest, [run.name for run in missing], skipped)


def first_with_its_batches(runs: Sequence[Wanted]) -> Callable[[Wanted], int]:
    """Return a function that gives the number of the first run that is trained on the same batches."""
    streams = {run.name: stream_settings(run.cfg) for run in runs}
    distinct: list[dict[str, Any]] = []
    for stream in streams.values():
        if stream not in distinct:
            distinct.append(stream)
    return lambda run: distinct.index(streams[run.name])


def reason_to_skip(
    wanted: Wanted, before: Mapping[str, RunState], manifest: Manifest, max_retries: int
) -> str:
    """Return why a run is not submitted; empty if it is to be submitted."""
    run, directory = before.get(wanted.name), manifest.directory(wanted.name)
    state = run.state if run else directory.read_status().get("state", "")
    if has_ended(state, wanted.cfg):
        return str(state)
    if not run and directory.is_held():
        return "running, in a process that no launcher started"
    if run and run.active:
        return f"{state}, job {run.entry.job}" if run.entry.job != local.LOCAL else state
    if run and state == "failed" and run.entry.retries >= max_retries:
        return f"failed {run.entry.retries + 1} times (hydra.launcher.max_retries = {max_retries})"
    return ""


def refuse_unusable_runs(folder: Path, runs: Sequence[Wanted]) -> None:
    """Raise `UserError` if a newer version wrote a file of the sweep, or if a run's directory is a link."""
    manifest = Manifest.load_or_new(folder)
    for name in {*manifest.runs, *(run.name for run in runs)}:
        manifest.directory(name).read_status()
    for run in runs:
        manifest.directory(run.name).refuse_link()


def refuse_other_configuration(manifest: Manifest, run: Wanted) -> None:
    """Raise `UserError` if a run's directory belongs to another configuration with the same short hash."""
    entry = manifest.runs.get(run.name)
    if entry and entry.config_hash not in ("", *run.config_hashes):
        raise UserError(
            f"{manifest.folder / run.name}: belongs to another configuration with the same short hash; set "
            "name=... to use another folder for this sweep."
        )


def prepare(manifest: Manifest, run: Wanted) -> None:
    """Write what any process needs to train a run: its configuration, state and tracker id."""
    entry = manifest.runs[run.name]
    entry.cancelled, entry.pruned, entry.job = False, False, None
    directory = manifest.directory(run.name)
    refuse_links(directory.path)
    write_config(directory, run.cfg)
    directory.traceback_file.unlink(missing_ok=True)
    tracker_id = tracker_id_of(directory.path, directory.read_status())
    about = git_revision() | ({"plugins": code} if (code := code_of(run.cfg)) else {})
    directory.mark(state="pending", run_id=run.name, tracker_id=tracker_id, **about)


def assign_jobs(manifest: Manifest, settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Give runs to the queue or to SLURM; each array is recorded as soon as SLURM has accepted it."""
    if manifest.launcher == "local":
        _record_jobs(manifest, [[name] for name in names], [local.LOCAL] * len(names))
        return
    if not names:
        return
    chosen = SimpleNamespace(**settings)  # as they are: ${HOME} in `setup` is for the shell
    arrays = slurm.arrays_of(groups_of(names, settings["runs_per_gpu"]))
    for groups in arrays:
        _record_jobs(manifest, groups, slurm.submit(chosen, manifest.folder, groups, len(arrays)))


def groups_of(runs: Sequence[Item], size: int) -> list[list[Item]]:
    """Split runs into the groups that share a job."""
    return [list(runs[start : start + size]) for start in range(0, len(runs), size)]


def _record_jobs(manifest: Manifest, groups: Sequence[list[str]], jobs: Sequence[str]) -> None:
    for names, job in zip(groups, jobs, strict=True):
        for name in names:
            entry = manifest.runs[name]
            entry.job = job
            entry.jobs.append(job)
    manifest.save()
