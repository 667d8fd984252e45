"""SLURM: submission by submitit, and the few questions and orders that go to the controller."""

from __future__ import annotations

import getpass
import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from dino_exp.config.launcher_settings import minutes, tasks_per_node
from dino_exp.errors import UserError
from dino_exp.installation import CHECKOUT, ROOT
from launchers.worker import work

USUAL_MAX_ARRAY_SIZE = 1001  # SLURM's default


def parameters(settings: Any, name: str, jobs: int, arrays: int = 1) -> dict[str, Any]:
    """The settings in submitit's words.

    Args:
        settings: as `SlurmSettings`.
        name: the job's name.
        jobs: of one array.
        arrays: those that share `array_parallelism`.
    """
    extra = {"requeue": True, **settings.sbatch}
    checkout = f'export PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    words = {
        "job_name": name,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "time": minutes(settings.time_limit),
        "nodes": settings.nodes,
        "ntasks_per_node": tasks_per_node(settings),
        "gpus_per_node": settings.gpus_per_node or None,
        "cpus_per_task": settings.cpus_per_task,
        "mem": None if settings.memory_gb is None else f"{round(settings.memory_gb * 1024)}M",
        "signal_delay_s": settings.grace_seconds,
        "array_parallelism": max(1, min(jobs, settings.array_parallelism // arrays)),
        "stderr_to_stdout": True,
        # one process that fails takes the run's others with it
        "srun_args": ["--kill-on-bad-exit=1"],
        "setup": [
            *settings.setup,
            *([checkout] if CHECKOUT else []),
            "export PYTHONSAFEPATH=1",
        ],
        "additional_parameters": {
            str(key).replace("_", "-"): value for key, value in extra.items() if value not in (None, False)
        },
    }
    # submitit would ask for a WCKey of its own, which a site may not know
    return {key: value for key, value in words.items() if value is not None} | {"wckey": None}


def job_folder(folder: Path) -> Path:
    """Where submitit keeps its scripts, pickles and logs."""
    return folder.resolve() / "jobs"


def script(settings: Any, folder: Path, jobs: int) -> str:
    """The text that sbatch would get, for a dry run; needs no SLURM."""
    from submitit.slurm.slurm import _make_sbatch_string

    python = settings.python or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(job_folder(folder)))}"
    words = parameters(settings, folder.name, jobs) | ({"map_count": jobs} if jobs > 1 else {})
    return _make_sbatch_string(command=command, folder=job_folder(folder), **words)


def arrays_of(groups: Sequence[list[str]]) -> list[Sequence[list[str]]]:
    """The jobs in arrays no larger than the site allows."""
    size = max_array_size()
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def max_array_size() -> int:
    """Jobs in one array, as the site's configuration has it."""
    shown = ask(["scontrol", "show", "config"]) or ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    return max(1, int(found.group(1)) if found else USUAL_MAX_ARRAY_SIZE)


def submit(settings: Any, folder: Path, groups: Sequence[list[str]], arrays: int) -> list[str]:
    """Submit one array; the job ids, one per group.

    Args:
        settings: as `SlurmSettings`.
        folder: the sweep's.
        groups: names of the runs in each job.
        arrays: into which the whole sweep is split.

    Raises:
        UserError: SLURM refuses, in its own words.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.SlurmExecutor(job_folder(folder), python=settings.python)
    executor.update_parameters(**parameters(settings, folder.name, len(groups), arrays))
    repeated = [str(folder.resolve())] * len(groups), list(groups), [settings.max_requeues] * len(groups)
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it then raises
            jobs = executor.map_array(work, *repeated)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"SLURM refuses the job: {' '.join(str(error).split())}") from None
    return [job.job_id for job in jobs]


def queue() -> dict[str, str] | None:
    """State of each of the user's jobs that SLURM has in hand, by id; None if it does not answer.

    One question, whatever the number of jobs.
    """
    answer = ask(["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i %T"])
    if answer is None:
        return None
    return dict(line.split(maxsplit=1) for line in answer.splitlines() if " " in line)


def accounting(jobs: Sequence[str]) -> dict[str, str]:
    """How jobs ended, by id, in one question; nothing where the site keeps no accounts."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    arrays = sorted({job.partition("_")[0] for job in jobs})
    answer = ask(["sacct", "-n", "-P", "-X", "-j", ",".join(arrays), "-o", "JobID,State"]) or ""
    lines = (line.split("|") for line in answer.splitlines() if "|" in line)
    return {words[0]: words[1].split()[0] for words in lines if words[1]}


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs from SLURM, in one order."""
    if jobs and ask(["scancel", *jobs]) is None:
        raise UserError(f"scancel {' '.join(jobs)}: SLURM does not answer; try again.")


def ask(command: list[str]) -> str | None:
    """What a command prints; None where it fails, is not there, or takes more than half a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
