"""The work of a SLURM job: `work` is called in each of its tasks, and starts and watches the runs.

This process imports no torch and outlives its runs, so that it can record how they ended and put the job back
into the queue.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from dino_exp.errors import UserError, refuse
from dino_exp.parallel.processes import RENDEZVOUS
from dino_exp.runs.manifest import Entry, Manifest
from dino_exp.runs.run_directory import RunDirectory, job_id
from dino_exp.streams import protect
from launchers.children import ENDED, Child, StopSignals, log_event, sharing_batches

POLL_SECONDS = 0.2
FAILED_TO_REQUEUE = 75  # EX_TEMPFAIL


def work(folder: str, names: list[str], max_requeues: int, plugins: Mapping[str, str] | None = None) -> None:
    """Train runs of a sweep, each in its own processes; the task exits with an error if one fails.

    Args:
        folder: Folder of the sweep.
        names: One run, of which this task is one process; in a job of one task also several runs.
        max_requeues: Number of restarts after which the job is not put back into the queue.
        plugins: Modules that the user who submitted has named, with the folder of each.
    """
    protect()
    rank, count = int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    directories = [RunDirectory(Path(folder) / name) for name in names]
    children: list[Child] = []
    refused = 0
    with StopSignals() as stop:
        for directory in directories:
            if count > 1 or directory.path.name in still_wanted(Path(folder), names):
                variables = process_variables(directory, os.environ, len(names)) | sharing_batches(len(names))
                try:
                    child = Child.start(directory, variables, share=len(names), rank=rank, plugins=plugins)
                except UserError as error:
                    refused = refuse([str(error)])
                else:
                    children.append(stop.add(child))
        while not all(child.ended for child in children):
            time.sleep(POLL_SECONDS)
        codes = [child.record_exit() for child in children]
        if stop.signal is not None and any(child.stopped for child in children):
            # the job ends once rank 0 has requeued it; an error of another task would end it earlier
            sys.exit(requeue(Path(folder), names, max_requeues, children[0].log) if rank == 0 else 0)
    sys.exit(max([refused, *codes]) or int(any_failed(Path(folder), names)))


def still_wanted(folder: Path, names: list[str]) -> list[str]:
    """Return the runs that have not ended, are not cancelled, and still belong to this job."""
    manifest, mine = Manifest.load(folder), (None, job_id())
    found = []
    for name in names:
        entry = manifest.runs.get(name) or Entry([], "")
        lost = not entry.config_hash and bool(manifest.problems)  # which job has it
        if not entry.cancelled and (lost or entry.job in mine):
            found.append(name)
    return [name for name in found if recorded_state(folder, name) not in ENDED]


def any_failed(folder: Path, names: list[str]) -> bool:
    """Return whether one of the runs has failed, now or in an earlier attempt of the job."""
    return any(recorded_state(folder, name) == "failed" for name in names)


def recorded_state(folder: Path, name: str) -> str | None:
    """Return the state in a run's status.json; None where it is not readable."""
    try:
        return RunDirectory(folder / name).read_status().get("state")
    except UserError:
        return None


def process_variables(directory: RunDirectory, given: Mapping[str, str], runs: int) -> dict[str, str]:
    """Return the variables that tell a process of a run its ranks and its share of the cores.

    GPUs stay as SLURM bound them. If each task sees only its own GPU, the local rank is 0 of 1; if all tasks
    of a node see all its GPUs, the local rank selects one.

    Args:
        directory: Directory of the run.
        given: Variables that SLURM set for this task.
        runs: Number of runs that share the task.
    """
    cpus = int(given.get("SLURM_CPUS_PER_TASK", 1))
    variables = {"SLURM_CPUS_PER_TASK": str(max(1, cpus // runs))}
    count = int(given.get("SLURM_NTASKS", 1))
    if count == 1:
        return variables
    local_rank, local_count = int(given["SLURM_LOCALID"]), tasks_here(given)
    visible = [gpu for gpu in given.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if len(visible) == 1:
        local_rank, local_count = 0, 1
    attempt = f"{given['SLURM_JOB_ID']}-{given.get('SLURM_RESTART_COUNT', 0)}"
    return variables | {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_count),
        RENDEZVOUS: str(directory.path / f".rendezvous.{attempt}"),
    }


def tasks_here(given: Mapping[str, str]) -> int:
    """Return the number of tasks on this node; SLURM writes the numbers of all nodes as in 2(x3),1."""
    numbers: list[int] = []
    for part in given.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        number, _, times = part.partition("(x")
        numbers += [int(number)] * int(times.rstrip(")") or 1)
    return numbers[int(given.get("SLURM_NODEID", 0))]


def requeue(folder: Path, names: list[str], max_requeues: int, log: Path) -> int:
    """Have SLURM put this job back into the queue, and return the exit code of the task if it does not.

    SLURM does not requeue a job by itself that ends within its grace time, neither after a preemption nor at
    the time limit.
    """
    job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if not still_wanted(folder, names):
        mark_cancelled(folder, names)
        log_event(log, "cancelled")
        return int(any_failed(folder, names))
    state = (output_of("squeue", "-h", "-j", job, "-o", "%T", timeout=None) or "").strip()
    if state == "":
        log_event(log, "not requeued: squeue does not answer here; resume the sweep")
    elif state != "RUNNING":  # by scancel; a requeue would bring the job back
        mark_cancelled(folder, names)
        log_event(log, f"cancelled: the job is {state}")
    elif restarts >= max_requeues:
        log_event(log, f"not requeued: hydra.launcher.max_requeues = {max_requeues} is reached")
    elif refusal := _requeue(job):
        log_event(log, f"not requeued: {refusal}; resume the sweep")
    else:
        log_event(log, f"job {job} is back in the queue")
        time.sleep(60)  # SLURM ends this process; exiting before that would make the job a failed one
    return FAILED_TO_REQUEUE


def _requeue(job: str) -> str:
    """Put a job back into the queue, and return what SLURM says if it refuses."""
    try:
        command = ["scontrol", "requeue", job]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    except OSError as error:
        return str(error)
    return (done.stderr or done.stdout).strip() if done.returncode else ""


def mark_cancelled(folder: Path, names: list[str]) -> None:
    """Record that the runs were stopped on purpose, except those that have ended."""
    for name in names:
        if recorded_state(folder, name) not in ENDED:
            RunDirectory(folder / name).mark(state="cancelled")


def output_of(*command: str, timeout: float | None = 30) -> str | None:
    """Return what a command prints, or None if it fails, is missing (as in a container), or times out."""
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
