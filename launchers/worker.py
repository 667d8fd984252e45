"""What a SLURM job does: `work` is called in each of its tasks, and starts and watches the runs.

This process imports no torch and survives its runs, so it can say how they ended and put the job back into
the queue.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from dino_exp.parallel.processes import RENDEZVOUS
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory, job_id
from launchers.children import ENDED, Child, StopSignals, say

POLL_SECONDS = 0.2
FAILED_TO_REQUEUE = 75  # EX_TEMPFAIL


def work(folder: str, names: list[str], max_requeues: int) -> None:
    """Train runs of a sweep, each in processes of its own; the task exits non-zero if one fails.

    Args:
        folder: the sweep's.
        names: one run, of which this task is one process; or, in a job of one task, several at a time.
        max_requeues: how often SLURM may have restarted the job for it to go back into the queue.
    """
    rank, count = int(os.environ.get("SLURM_PROCID", 0)), int(os.environ.get("SLURM_NTASKS", 1))
    directories = [RunDirectory(Path(folder) / name) for name in names]
    children: list[Child] = []
    with StopSignals() as stop:
        for directory in directories:
            if count > 1 or directory.path.name in still_wanted(Path(folder), names):
                place = environment(directory, os.environ, len(names))
                children.append(stop.add(Child.start(directory, place, share=len(names), rank=rank)))
        while not all(child.ended for child in children):
            time.sleep(POLL_SECONDS)
        codes = [child.see_off() for child in children]
        if stop.signal is not None and any(child.stopped for child in children):
            # the job ends when rank 0 has put it back; an error of another task would end it before
            sys.exit(requeue(Path(folder), names, max_requeues, children[0].log) if rank == 0 else 0)
    sys.exit(max(codes, default=0) or int(any_failed(Path(folder), names)))


def still_wanted(folder: Path, names: list[str]) -> list[str]:
    """The runs that have not ended, are not cancelled, and have not been given to another job since."""
    entries, mine = Manifest.load(folder).runs, (None, job_id())
    return [
        name
        for name in names
        if not entries[name].cancelled and entries[name].job in mine and state_of(folder, name) not in ENDED
    ]


def any_failed(folder: Path, names: list[str]) -> bool:
    """Whether one of the runs has failed, now or in an earlier attempt of the job."""
    return any(state_of(folder, name) == "failed" for name in names)


def state_of(folder: Path, name: str) -> str | None:
    """A run's, as its status file has it."""
    return RunDirectory(folder / name).read_status().get("state")


def environment(directory: RunDirectory, given: Mapping[str, str], runs: int) -> dict[str, str]:
    """Variables that tell a run's process its place and its share, from those that SLURM set.

    GPUs stay as SLURM bound them: where it shows each task its own one, the task is alone as far as CUDA is
    concerned; where it shows all of a node's to all of the node's tasks, the local rank chooses.
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
        # a name that the run directory cleans up when it is next held
        RENDEZVOUS: str(directory.path / f".rendezvous.{attempt}"),
    }


def tasks_here(given: Mapping[str, str]) -> int:
    """Tasks of the job step on this node; SLURM writes all nodes' numbers as in 2(x3),1."""
    numbers: list[int] = []
    for part in given.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        number, _, times = part.partition("(x")
        numbers += [int(number)] * int(times.rstrip(")") or 1)
    return numbers[int(given.get("SLURM_NODEID", 0))]


def requeue(folder: Path, names: list[str], max_requeues: int, log: Path) -> int:
    """Have SLURM put this job back into the queue; the exit code if it will not, or must not.

    SLURM does not do so by itself for a job that ends in time, neither after a preemption nor at the limit.
    """
    job, restarts = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if not still_wanted(folder, names):
        mark_cancelled(folder, names)
        say(log, "cancelled")
        return int(any_failed(folder, names))
    state = ask("squeue", "-h", "-j", job, "-o", "%T")
    if state == "":
        say(log, "not requeued: squeue does not answer here; resume the sweep")
        return FAILED_TO_REQUEUE
    if state != "RUNNING":  # scancel; a requeue would raise the job from the dead
        mark_cancelled(folder, names)
        say(log, f"cancelled: the job is {state}")
        return FAILED_TO_REQUEUE
    if restarts >= max_requeues:
        say(log, f"not requeued: hydra.launcher.max_requeues = {max_requeues} is reached")
        return FAILED_TO_REQUEUE
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
        refusal = (done.stderr or done.stdout).strip() if done.returncode else ""
    except OSError as error:
        refusal = str(error)
    if refusal:
        say(log, f"not requeued: {refusal}; resume the sweep")
        return FAILED_TO_REQUEUE
    say(log, f"job {job} is back in the queue")
    time.sleep(60)  # SLURM ends this process; ending by itself would make the job a failed one
    return FAILED_TO_REQUEUE


def mark_cancelled(folder: Path, names: list[str]) -> None:
    """Write down that the runs were stopped on purpose, those that had ended by then excepted."""
    for name in names:
        if state_of(folder, name) not in ENDED:
            RunDirectory(folder / name).mark(state="cancelled")


def ask(*command: str) -> str:
    """What a command prints; nothing where it fails, or is not there, as in a container."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
