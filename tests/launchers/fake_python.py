"""Stands where launchers look for Python, and plays the runs: what each does is in its folder's `do` file.

    finish             writes that it has finished, and ends with 0
    fail               writes that it has failed, with a traceback, and ends with 1
    exit N             ends with N without a word
    kill               is killed, as by the system when memory runs out
    wait               holds the run until it is told to stop, saves, and ends with 128 + the signal
    deaf               as `wait`, but does not listen, so that the signal ends it
    signal N FILES     as `wait`, and when the sweep's folder has these files, sends the signal N to whoever
                       started it, as SLURM does
    gate FILES         finishes when the sweep's folder has these files

Without a `do` file a run finishes. What it saw on starting is in `seen.json`; having finished it leaves
`done`. `order.txt` in the sweep's folder has all starts.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

SEEN = ("CUDA_VISIBLE_DEVICES", "SLURM_CPUS_PER_TASK", "RANK", "WORLD_SIZE", "LOCAL_RANK")


def write_status(run: Path, **changes: object) -> None:
    """Like the run's own, whole or not at all."""
    file = run / "status.json"
    status = json.loads(file.read_text()) if file.exists() else {}
    temporary = file.with_name(f"new.{os.getpid()}")
    temporary.write_text(json.dumps({**status, **changes, "heartbeat": time.time()}))
    temporary.replace(file)


def train(run: Path, share: int) -> None:
    """What `do` says."""
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
    variables = {name: os.environ[name] for name in SEEN if name in os.environ}
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
    """The launcher's own queue, whose runs are played here again, and which looks more often."""
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
