"""Submission to SLURM by submitit, and the few SLURM commands that the launchers call."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from dino_exp.config.launcher_settings import minutes, tasks_per_node
from dino_exp.config.plugins import NAMED
from dino_exp.errors import UserError
from dino_exp.installation import CHECKOUT, ROOT
from launchers.worker import output_of, work

USUAL_MAX_ARRAY_SIZE = 1001  # SLURM's default


def parameters(settings: Any, name: str, jobs: int, arrays: int = 1) -> dict[str, Any]:
    """Return `SlurmSettings` as submitit's parameters; `arrays` of `jobs` share `array_parallelism`."""
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
        # a process that fails ends the other processes of the run
        "srun_args": ["--kill-on-bad-exit=1"],
        "setup": [*settings.setup, *([checkout] if CHECKOUT else []), "export PYTHONSAFEPATH=1"],
        "additional_parameters": {
            str(key).replace("_", "-"): value for key, value in extra.items() if value not in (None, False)
        },
    }
    # otherwise submitit sets a WCKey, which a site may not know
    return {key: value for key, value in words.items() if value is not None} | {"wckey": None}


def job_folder(folder: Path) -> Path:
    """Return the folder of submitit's scripts, pickles and logs.

    Raises:
        UserError: its path cannot be in a job script.
    """
    path = folder.resolve() / "jobs"
    text = str(path)
    if not text.isprintable() or re.search(r"[%\\]", text):
        raise UserError(
            f"{json.dumps(str(folder.resolve()))}: has a line break, another control character, % or \\ in "
            "it, which SLURM would replace in the names of log files; choose another output_root or name."
        )
    return path


def script(settings: Any, folder: Path, jobs: int) -> str:
    """Return the text that sbatch would get, for a dry run; needs no SLURM."""
    from submitit.slurm.slurm import _make_sbatch_string

    python = settings.python or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(job_folder(folder)))}"
    words = parameters(settings, folder.name, jobs) | ({"map_count": jobs} if jobs > 1 else {})
    return _make_sbatch_string(command=command, folder=job_folder(folder), **words)


def arrays_of(groups: Sequence[list[str]]) -> list[Sequence[list[str]]]:
    """Split the jobs into arrays no larger than the site allows."""
    shown = output_of("scontrol", "show", "config") or ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", shown, re.MULTILINE)
    size = max(1, int(found.group(1)) if found else USUAL_MAX_ARRAY_SIZE)
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def submit(settings: Any, folder: Path, groups: Sequence[list[str]], arrays: int) -> list[str]:
    """Submit one array out of `arrays`, and return the job ids, one per group of runs.

    Raises:
        UserError: SLURM refuses the job; the message quotes it.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor = submitit.SlurmExecutor(job_folder(folder), python=settings.python)
    executor.update_parameters(**parameters(settings, folder.name, len(groups), arrays))
    same = [str(folder.resolve())], [settings.max_requeues], [dict(NAMED)]
    folders, requeues, plugins = (each * len(groups) for each in same)
    try:
        with redirect_stderr(io.StringIO()):  # submitit prints what it then raises
            jobs = executor.map_array(work, folders, list(groups), requeues, plugins)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(f"SLURM refuses the job: {' '.join(str(error).split())}") from None
    return [job.job_id for job in jobs]


def queue() -> dict[str, str] | None:
    """Return the state of each of the user's queued and running jobs by id, or None if SLURM does not answer.

    It is one call, however many jobs there are.
    """
    answer = output_of("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", "%i %T")  # not all have a name
    if answer is None:
        return None
    return dict(line.split(maxsplit=1) for line in answer.splitlines() if " " in line)


def accounting(jobs: Sequence[str]) -> dict[str, str]:
    """Return the final states of jobs by id, in one call; empty where the site has no accounting."""
    if not jobs or shutil.which("sacct") is None:
        return {}
    arrays = sorted({job.partition("_")[0] for job in jobs})
    answer = output_of("sacct", "-n", "-P", "-X", "-j", ",".join(arrays), "-o", "JobID,State") or ""
    lines = (line.split("|") for line in answer.splitlines() if "|" in line)
    return {words[0]: words[1].split()[0] for words in lines if words[1]}


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, in one call; what is no job id is not passed on, because scancel may take it as an option.

    Raises:
        UserError: SLURM does not answer.
    """
    jobs = [job for job in jobs if re.fullmatch(r"\d+(_\d+)?", job)]
    if jobs and output_of("scancel", *jobs) is None:
        raise UserError(f"scancel {' '.join(jobs)}: SLURM does not answer; try again.")
