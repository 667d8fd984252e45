"""The process that calls Weights & Biases for one run, started and fed by `wandb.WandbTracker`.

It is separate because wandb inside the training process replaces sys.exit and sys.excepthook, and hooks the
interpreter's exit, where a server that does not answer blocks it for ten seconds and more. Here one kill ends
all of that.

Standard input has one JSON object per line: first `{"init": ...}`, then `{"log": ...}`, `{"image": ...}`,
`{"alert": ...}` and `{"finish": ...}`. Standard output answers twice: how the run was opened, and that it was
closed. What wandb prints goes to standard error. Imports nothing from this package.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from typing import IO, Any

Command = dict[str, Any]

FLUSH_SECONDS = 2.0
UNSAFE_SECONDS = {"offline": FLUSH_SECONDS + 1, "online": 30.0}
"""How long a record may be only in wandb-core's memory, before it is in a file or uploaded."""
REOPENINGS = 2
PROJECT = "dino-exp"
EMPTY_BYTES = 7
"""Size of a run's file that has only wandb's header."""


def main() -> None:
    """Open the run, forward its records, and close it when told to or when the training process has ended."""
    commands, replies = _take_pipes()
    _outlive_signals()
    # without this file's folder, in which `wandb` is our module
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    init = json.loads(commands.readline())["init"]
    try:
        # wandb removes its temporary folders only when its exit hooks run
        with tempfile.TemporaryDirectory(prefix=init["temporary"], ignore_cleanup_errors=True) as folder:
            os.environ["TMPDIR"] = tempfile.tempdir = folder
            _mirror(init, commands, replies)
    except Exception as error:
        traceback.print_exc()
        _reply(replies, failed=" ".join(f"{type(error).__name__}: {error}".split())[:300])
    sys.stderr.flush()
    os._exit(0)  # not sys.exit: wandb's exit hooks wait for the server; wandb-core ends with this process


def _mirror(init: Command, commands: IO[str], replies: IO[str]) -> None:
    mode, why = _choose_mode(init["mode"])
    if mode == "disabled":
        _reply(replies, mode=mode, why=why)
        return
    mirror = _Mirror({**init, "mode": mode})
    _reply(replies, mode=mode, why=why, url=mirror.run.url, files=mirror.run.settings.sync_dir)
    _follow(mirror, commands, replies, init["timeout"])


def _take_pipes() -> tuple[IO[str], IO[str]]:
    """Return both pipes, hidden from wandb-core, which inherits 0, 1 and 2 and would keep them open."""
    commands = os.fdopen(os.dup(0), encoding="utf-8")
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return commands, replies


def _outlive_signals() -> None:
    """Ignore the signals that a scheduler sends to all processes of a job: the training decides the end."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(5)  # on a machine with few cores the training has priority


def _choose_mode(wanted: str) -> tuple[str, str]:
    """Return online, offline or disabled, and the reason in words, without asking a server."""
    import wandb

    if wanted != "auto":
        return wanted, f"tracker.mode={wanted}"
    configured = wandb.setup().settings.mode
    if configured == "disabled":
        return "disabled", "WANDB_MODE or the W&B settings say so"
    if configured in ("offline", "dryrun"):
        return "offline", "WANDB_MODE or the W&B settings say so"
    try:
        try:
            logged_in = wandb.login(prompt=False, verify=False)
        except TypeError:  # an older wandb, which does not prompt without a terminal
            logged_in = wandb.login()
    except wandb.errors.UsageError:  # an older wandb without a login
        logged_in = False
    except wandb.Error:  # an unusable login: wandb.init will report what is wrong
        logged_in = True
    return ("online", "a W&B login was found") if logged_in else ("offline", "no W&B login was found")


class _CoreGoneError(Exception):
    """Error for wandb-core having ended, or failing to finish a run."""


class _Mirror:
    """The open W&B run; opens another segment of it when wandb-core dies.

    wandb-core exits at once on SIGTERM, which a scheduler sends to every process of a preempted job, before
    the last metrics and the end of the run arrive.
    """

    def __init__(self, init: Command) -> None:
        self._init = init
        self._unsafe: deque[tuple[float, Command]] = deque()
        self._reopenings = 0
        self.run = _open(init)

    def pass_on(self, command: Command) -> None:
        now = time.monotonic()
        while self._unsafe and self._unsafe[0][0] < now - UNSAFE_SECONDS[self._init["mode"]]:
            self._unsafe.popleft()
        self._unsafe.append((now, command))
        try:
            _call(self.run, command)
        except _CoreGoneError:
            self._reopenings += 1
            if self._reopenings > REOPENINGS:
                raise
            traceback.print_exc()
            self._reopen()

    def _reopen(self) -> None:
        import wandb

        with contextlib.suppress(Exception):
            wandb.teardown()
        self.run = _open(self._init)
        for _, command in self._unsafe:
            _call(self.run, command)


def _open(init: Command) -> Any:
    """Open the run with `wandb.init`, which raises after the timeout."""
    import wandb

    settings = {
        "init_timeout": init["timeout"],
        "silent": True,
        "console": "off",
        "stop_fn": lambda: None,  # the website's stop button would stop this process, not the training
        "disable_git": True,
        "disable_code": True,
        "disable_job_creation": True,
        "save_code": False,
        "label_disable": True,
        "x_disable_meta": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
        "x_transaction_log_flush_interval": FLUSH_SECONDS,
    }
    _remove_empty_segments(Path(os.environ.get("WANDB_DIR") or init["directory"]).expanduser(), init["id"])
    run = wandb.init(
        **{key: init[key] for key in ("mode", "entity", "id", "config", "tags", "notes")},
        **_unless_set(name=("WANDB_NAME", init["name"]), group=("WANDB_RUN_GROUP", init["group"])),
        **_unless_set(dir=("WANDB_DIR", init["directory"])),
        project=init["project"] or wandb.setup().settings.project or PROJECT,
        resume="allow",
        reinit="create_new",
        settings={key: value for key, value in settings.items() if key in wandb.Settings.model_fields},
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _unless_set(**values: tuple[str, Any]) -> Command:
    """Return the arguments whose environment variable is not set; wandb reads the others there."""
    return {key: value for key, (variable, value) in values.items() if not os.environ.get(variable)}


def _remove_empty_segments(directory: Path, name: str) -> None:
    """Remove files of a run killed before their first flush, because of which `wandb sync` fails for all."""
    for file in directory.glob(f"wandb/*run-*-{name}/run-{name}.wandb"):
        if not file.parent.is_symlink() and file.stat().st_size <= EMPTY_BYTES:
            shutil.rmtree(file.parent, ignore_errors=True)


def _call(run: Any, command: Command) -> None:
    """Pass a command to wandb; raise `_CoreGoneError` if wandb-core has ended, and print other errors."""
    import wandb

    try:
        if "log" in command:
            run.log(command["log"])
        elif "image" in command:
            image = command["image"]
            run.log({image["name"]: wandb.Image(image["path"]), "step": image["step"]})
        elif "alert" in command:
            run.alert(title=command["alert"]["title"][:63], text=command["alert"]["text"], level="WARN")
        elif "finish" in command:
            if command["finish"]["summary"].get("state") == "preempted":
                run.mark_preempting()
            run.summary.update(command["finish"]["summary"])
            run.finish(exit_code=command["finish"]["exit_code"])
    except Exception as error:
        if isinstance(error, ConnectionError) or "finish" in command:
            raise _CoreGoneError(f"{type(error).__name__}: {error}") from error
        traceback.print_exc()  # e.g. an unreadable image, which must not end the mirror


def _follow(mirror: _Mirror, commands: IO[str], replies: IO[str], timeout: float) -> None:
    for line in commands:
        command = json.loads(line)
        mirror.pass_on(command)
        if "finish" in command:
            _reply(replies, finished=True)
            return
    # The training process has ended without `finish`. Nobody waits for this process, so it limits itself.
    watchdog = threading.Timer(timeout, os._exit, (1,))
    watchdog.daemon = True
    watchdog.start()
    mirror.pass_on({"finish": {"summary": {}, "exit_code": 1}})


def _reply(replies: IO[str], **answer: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the training process has ended; `_follow` handles that
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
