"""Our programs as real processes, forked from a process that has already imported torch.

Each has its own process id, signals and exit code, and starts in a tenth of a second, where `python train.py`
takes three. The tests marked `spawn` start the programs without this.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
PRELOADED = [
    "torch",
    "timm",
    "dino_exp.training.run",
    "dino_exp.cli",
    "dino_exp.eval.evaluate_command",
    "launchers.__main__",
]

Found = TypeVar("Found")
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOADED)
_living: set[Program] = set()


@cache
def _outputs() -> str:
    """Return the folder for the output of all programs, which is removed at the end of the tests."""
    folder = tempfile.mkdtemp(prefix="dino-exp-tests-")
    atexit.register(shutil.rmtree, folder)
    return folder


class Program:
    """A running `train.py WORDS`, `evaluate.py WORDS`, ..., or `-m MODULE WORDS`.

    Args:
        words: the program (a file of the project, or -m and a module), and its arguments.
        folder: its working directory.
        environment: variables in addition to those of this process.
        own_group: whether it starts its own process group, so that signals to the group reach no other.
        plots: whether trainings draw plots.
        stdout: a file or device for its standard output, instead of one that `stdout` reads.
    """

    def __init__(
        self,
        *words: str,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        own_group: bool = False,
        plots: bool = False,
        stdout: Path | None = None,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=_outputs()))
        variables = os.environ | (environment or {})
        outputs = (str(stdout or self._folder / "stdout"), str(self._folder / "stderr"))
        self._process = _server.Process(
            target=_become,
            args=(words, str(folder), dict(variables), outputs, own_group, plots),
        )
        self._process.start()
        _living.add(self)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Return the exit code as `subprocess` does: None while it runs, -N after signal N."""
        return self._process.exitcode

    @property
    def stdout(self) -> str:
        """Return what it has written so far."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        return self._read("stderr")

    @property
    def output(self) -> str:
        """Return stdout followed by stderr."""
        return self.stdout + self.stderr

    def _read(self, name: str) -> str:
        file = self._folder / name
        return file.read_text(errors="replace") if file.exists() else ""

    def wait(self, seconds: float = 240) -> int:
        """Wait for its end, and return the exit code."""
        self._process.join(seconds)
        assert self.returncode is not None, f"process {self.pid} still runs after {seconds} s:\n{self.output}"
        _living.discard(self)
        return self.returncode

    def until_it_says(self, text: str) -> None:
        """Wait until it has printed `text`."""
        until(lambda: text in self.output or self.returncode is not None, text)
        assert text in self.output, f"{text!r} was never printed:\n{self.output}"

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        self._process.kill()
        self.wait()


def run_program(*words: str, folder: Path, environment: Mapping[str, str] | None = None) -> Program:
    """Run a program to its end."""
    program = Program(*words, folder=folder, environment=environment)
    program.wait()
    return program


def ranks(*words: str, folder: Path, environment: Mapping[str, str] | None = None) -> list[Program]:
    """Start two processes of one run, with the variables that torchrun would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = [both | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [Program(*words, folder=folder, environment={**(environment or {}), **each}) for each in own]


def wait_for_all(pair: list[Program]) -> list[int]:
    """Wait for the processes of a run as torchrun does, with SIGTERM to the others when one fails."""
    until(
        lambda: any(each.returncode for each in pair) or all(each.returncode == 0 for each in pair), "an end"
    )
    for each in pair:
        if each.returncode is None:
            each.signal(signal.SIGTERM)
    return [each.wait() for each in pair]


def in_two_processes(function: Callable[..., Any], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in two processes of one gloo group."""
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        variables = dict(os.environ)
        pair = [
            _server.Process(target=_join_and_call, args=(rank, rendezvous, variables, function, arguments))
            for rank in range(2)
        ]
        for process in pair:
            process.start()
        try:
            until(
                lambda: all(each.exitcode == 0 for each in pair) or any(each.exitcode for each in pair),
                "both",
            )
        finally:
            for process in pair:
                process.kill()
                process.join()
    assert [process.exitcode for process in pair] == [0, 0]


def until(condition: Callable[[], Found], what: str, seconds: float = 240) -> Found:
    """Wait for a true value of a condition, and return it; fail after `seconds`."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, f"never happened: {what}"
        time.sleep(0.02)
    return found


def end_all() -> None:
    """Kill the programs that a test has left running."""
    for program in list(_living):
        with suppress(ProcessLookupError):
            program.kill()


def without_plots(patch: Callable[[str, object], object]) -> None:
    """Have trainings draw no plots, which take a quarter of the time of a short one."""
    patch("draw", lambda *_: {})
    patch("draw_crops", lambda *_: None)


def _become(
    words: tuple[str, ...],
    folder: str,
    variables: dict[str, str],
    outputs: tuple[str, str],
    own_group: bool,
    plots: bool,
) -> None:
    """Become the program, in a forked process."""
    if not plots:
        import dino_exp.training.run

        without_plots(lambda name, nothing: setattr(dino_exp.training.run, name, nothing))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    if own_group:
        os.setsid()
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    program, *arguments = words
    if program == "-m":
        module, *arguments = arguments
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(ROOT / program), *arguments]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))  # as Python does
        runpy.run_path(sys.argv[0], run_name="__main__")


def _join_and_call(
    rank: int,
    rendezvous: str,
    variables: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(variables)
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    function(rank, *arguments)
    dist.destroy_process_group()
