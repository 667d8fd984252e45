"""A stand-in for Python that fakes runs: each run does what the `do` file in its folder says.

    finish             records that it has finished, and exits with 0
    fail               records that it has failed, with a traceback, and exits with 1
    exit N             exits with N and records nothing
    kill               is killed, as the system does when memory runs out
    wait               holds the run until a stop signal, saves, and exits with 128 + the signal
    deaf               as `wait`, but has no handler, so the signal kills it
    signal N FILES     as `wait`; once the sweep's folder has these files, it sends the signal N to its
                       parent, as SLURM does
    gate FILES         finishes once the sweep's folder has these files

A run without a `do` file finishes. A run writes what it found at its start into `seen.json`, and `done` when
it has finished. `order.txt` in the sweep's folder lists all starts.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

SEEN = ("CUDA_VISIBLE_DEVICES", "SLURM_CPUS_PER_TASK", "RANK", "WORLD_SIZE", "LOCAL_RANK")
SHARED = "DINO_EXP_SHARED_BATCHES"


def write_status(run: Path, **changes: object) -> None:
    """Change fields of status.json atomically, as a real run does."""
    file = run / "status.json"
    status = json.loads(file.read_text()) if file.exists() else {}
    temporary = file.with_name(f"new.{os.getpid()}")
    temporary.write_text(json.dumps({**status, **changes, "heartbeat": time.time()}))
    temporary.replace(file)


def train(run: Path, share: int) -> None:
    """Do what the `do` file says."""
    do, *argument = (run / "do").read_text().split() if (run / "do").exists() else ["finish"]
    if do == "exit":
        print("a last word")
        sys.exit(int(argument[0]))
    lock = (run / ".lock").open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def save(number: int, frame: object) -> None:
        write_status(run, state="preempted")
        os._exit(128 + number)

    if do in ("wait", "signal", "gate"):
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, save)
    write_status(run, state="running", step=3, total_steps=8)
    variables = {name: os.environ[name] for name in (*SEEN, SHARED) if name in os.environ}
    with (run.parent / "order.txt").open("a") as order:
        order.write(f"{run.name}\n")
    (run / "seen.json").write_text(json.dumps({"pid": os.getpid(), "share": share, **variables}))
    if do == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "fail":
        (run / "traceback.txt").write_text("ValueError: a loss of NaN\n")
        write_status(run, state="failed")
        sys.exit(1)
    files = [run.parent / name for name in argument if not name.isdecimal()]
    while not all(file.exists() for file in files):
        time.sleep(0.01)
    if do == "signal":
        os.kill(os.getppid(), int(argument[0]))
    while do in ("wait", "deaf", "signal"):
        time.sleep(0.01)
    write_status(run, state="finished")
    (run / "done").touch()


def work_off_queue(folder: str) -> None:
    """Run the real queue, with this script as its Python and a short polling interval."""
    code = (
        "import sys; from pathlib import Path; from launchers import local; "
        "sys.executable, local.POLL_SECONDS = sys.argv[1], 0.02; local.main(Path(sys.argv[2]))"
    )
    os.execv(sys.executable, [sys.executable, "-c", code, __file__, folder])


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "-u"]
    if words[:2] == ["-m", "launchers.training_process"] and words[3] == "--share":
        train(Path(words[2]), int(words[4]))
    elif words[:2] == ["-m", "launchers.local"]:
        work_off_queue(words[2])
    else:
        sys.exit(f"not expected: {words}")
