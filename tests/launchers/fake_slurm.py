"""Stand-ins for the SLURM commands that this project calls; the name of the file selects the command.

Like the real commands they refuse arguments that they do not know, so a wrong call fails in the tests too.
Copies of this file have the names of the commands, and `cluster.json` beside them has

    jobs: state of each job by id, `12` or in an array `12_3`
    next: id of the next job
    max_array_size: as in slurm.conf
    room: number of submissions that are still accepted; null is no limit
    down: whether the controller does not answer
    calls: all command lines so far
    scripts: the text of each submission by job id
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

QUEUED = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED")


def sbatch(cluster: dict[str, Any], arguments: list[str]) -> None:
    """sbatch SCRIPT"""
    (script,) = arguments
    text = Path(script).read_text()
    if cluster["room"] is not None:
        if not cluster["room"]:
            fail("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed")
        cluster["room"] -= 1
    job = str(cluster["next"])
    array = re.search(r"^#SBATCH --array=0-(\d+)%\d+$", text, re.MULTILINE)
    if array and int(array[1]) >= cluster["max_array_size"]:
        fail("sbatch: error: Batch job submission failed: Invalid job array specification")
    ids = [f"{job}_{index}" for index in range(int(array[1]) + 1)] if array else [job]
    cluster["jobs"].update(dict.fromkeys(ids, "PENDING"))
    cluster["scripts"][job] = text
    cluster["next"] += 1
    print(f"Submitted batch job {job}")


def squeue(cluster: dict[str, Any], arguments: list[str]) -> None:
    """squeue -h -r -u USER -o "%i %T", or squeue -h -j JOB -o %T"""
    if arguments[:3] == ["-h", "-r", "-u"] and arguments[4:] == ["-o", "%i %T"]:
        for job, state in cluster["jobs"].items():
            if state in QUEUED:
                print(job, state)
    elif arguments[:2] == ["-h", "-j"] and arguments[3:] == ["-o", "%T"]:
        if arguments[2] not in cluster["jobs"]:
            fail("slurm_load_jobs error: Invalid job id specified")
        print(cluster["jobs"][arguments[2]])
    else:
        fail(f"squeue: unrecognized option: {arguments}")


def sacct(cluster: dict[str, Any], arguments: list[str]) -> None:
    """sacct -n -P -X -j JOBS -o JobID,State"""
    if arguments[:4] != ["-n", "-P", "-X", "-j"] or arguments[5:] != ["-o", "JobID,State"]:
        fail(f"sacct: unrecognized option: {arguments}")
    asked = arguments[4].split(",")
    for job, state in cluster["jobs"].items():
        if job in asked or job.partition("_")[0] in asked:
            print(f"{job}|{state} by 1000" if state == "CANCELLED" else f"{job}|{state}")


def scancel(cluster: dict[str, Any], arguments: list[str]) -> None:
    """scancel JOB..."""
    for job, state in cluster["jobs"].items():
        if state in QUEUED and (job in arguments or job.partition("_")[0] in arguments):
            cluster["jobs"][job] = "CANCELLED"


def scontrol(cluster: dict[str, Any], arguments: list[str]) -> None:
    """scontrol show config, or scontrol requeue JOB"""
    if arguments == ["show", "config"]:
        print(f"MaxArraySize            = {cluster['max_array_size']}\nMaxJobCount             = 10000")
    elif arguments[0] == "requeue" and arguments[1] in cluster["jobs"]:
        cluster["jobs"][arguments[1]] = "PENDING"
    else:
        fail(f"scontrol: error: {arguments}")


def srun(cluster: dict[str, Any], arguments: list[str]) -> None:
    """Fail: submitit checks that srun exists, but nothing calls it."""
    fail("srun: error: not in a job")


def fail(message: str) -> None:
    """Print an error and exit, as SLURM's commands do."""
    print(message, file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    command = Path(__file__).name
    file = Path(__file__).with_name("cluster.json")
    content = json.loads(file.read_text())
    content["calls"].append([command, *sys.argv[1:]])
    try:
        if content["down"]:
            fail(f"{command}: error: Unable to contact slurm controller (connect failure)")
        globals()[command](content, sys.argv[1:])
    finally:
        file.write_text(json.dumps(content))
