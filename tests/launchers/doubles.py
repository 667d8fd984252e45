"""Stand-ins for SLURM and for training, and short functions that read and change a sweep."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from dino_exp import cli
from dino_exp.config.compose import compose
from dino_exp.config.identity import run_id
from dino_exp.config.launcher_settings import with_changes
from dino_exp.config.schema import Config
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.run_directory import RunDirectory
from launchers import submission, worker
from launchers.__main__ import main as launchers
from launchers.submission import Submission, Wanted
from tests.programs import until

SWEEP = Path("outputs/debug_sweep_seed")
HERE = Path(__file__).parent
PYTHON = sys.executable
COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun")
ON_SLURM = ("-m", "experiment=debug", "hydra/launcher=slurm", "hydra.launcher.detach=true")
wait_until = partial(until, what="the condition", seconds=30)
LOCALLY = ("-m", "experiment=debug", "hydra/launcher=local")


def install(script: Path, command: Path) -> None:
    """Install a script as a command that starts quickly, without the packages of the environment."""
    command.write_text(f"#!{PYTHON} -SE\n{script.read_text()}")
    command.chmod(0o755)


class Cluster:
    """The fake SLURM of one test: its jobs, its settings, and the calls that it received."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "cluster.json"
        folder.mkdir()
        content = {"jobs": {}, "next": 100, "max_array_size": 1001, "room": None, "down": False}
        self.file.write_text(json.dumps({**content, "calls": [], "scripts": {}}))
        for command in COMMANDS:
            install(HERE / "fake_slurm.py", folder / command)
        git = shutil.which("git")
        if git:
            (folder / "git").symlink_to(git)

    def read(self) -> dict[str, Any]:
        """Return the content of `cluster.json`."""
        content: dict[str, Any] = json.loads(self.file.read_text())
        return content

    def set(self, **changes: Any) -> None:
        """Change fields of `cluster.json`."""
        self.file.write_text(json.dumps(self.read() | changes))

    def move(self, jobs: Mapping[str, str]) -> None:
        """Set the states of jobs."""
        self.set(jobs=self.read()["jobs"] | jobs)

    def calls(self, command: str) -> list[list[str]]:
        """Return the arguments of each call of a command."""
        return [words[1:] for words in self.read()["calls"] if words[0] == command]

    def forget_calls(self) -> None:
        """Clear the record of calls."""
        self.set(calls=[])

    def script(self, job: str) -> str:
        """Return the script that sbatch was given."""
        return str(self.read()["scripts"][job.partition("_")[0]])

    def without(self, *commands: str) -> None:
        """Remove commands."""
        for command in commands:
            (self.folder / command).unlink()


def dino(*argv: str) -> int:
    """Run `train.py` with a command line, and return its exit code."""
    try:
        return cli.main(argv)
    except SystemExit as leaving:
        return int(leaving.code or 0)


class Played:
    """A folder of fake runs, which follow instructions instead of training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def run(self, name: str, do: str) -> RunDirectory:
        """Return the directory of a submitted run that will do `do`; see `fake_python.py`."""
        directory = RunDirectory(self.folder / name)
        directory.mark(state="pending")
        (directory.path / "do").write_text(do)
        return directory


@cache
def config(seed: int) -> Config:
    """Return the configuration of a run; cached, because composing takes longer than the tests."""
    return compose(["experiment=debug", f"trainer.seed={seed}"])


def submit(seeds: Iterable[int], *changes: str, launcher: str = "slurm") -> Submission:
    """Submit a sweep over trainer.seed as `train.py` does, with changed keys of hydra.launcher."""
    settings = with_changes(launcher, {}, changes)
    runs = [Wanted(run_id(config(seed)), (f"trainer.seed={seed}",), config(seed)) for seed in seeds]
    return submission.submit(SWEEP, launcher, settings, runs)


def resume(*changes: str) -> int:
    """Run `python -m launchers resume` for the sweep, and return its exit code."""
    return launchers(["resume", str(SWEEP), *changes])


def the_sweep() -> Manifest:
    """Return the present manifest of the sweep."""
    return Manifest.load(SWEEP)


def directory(seed: int) -> RunDirectory:
    """Return the directory of one run of the sweep."""
    return RunDirectory(SWEEP / run_id(config(seed)))


def mark(seed: int, **status: Any) -> RunDirectory:
    """Change the status of a run, and return its directory."""
    directory(seed).mark(**status)
    return directory(seed)


def jobs() -> dict[int, list[str]]:
    """Return all jobs that each seed has had."""
    manifest = the_sweep()
    return {seed: manifest.runs[name].jobs for seed, name in by_seed(manifest).items()}


def by_seed(manifest: Manifest) -> dict[int, str]:
    """Return the names of the runs of a sweep over trainer.seed, by seed."""
    return {
        int(override.partition("=")[2]): name
        for name, entry in manifest.runs.items()
        for override in entry.overrides
        if override.startswith("trainer.seed=")
    }


def trained_by(manifest: Manifest, job: str) -> list[str]:
    """Return the runs that a job will train, as its pickle says."""
    from submitit.core.utils import DelayedSubmission

    call = DelayedSubmission.load(manifest.folder / "jobs" / f"{job}_submitted.pkl")
    folder, names, *_ = call.args
    assert call.function is worker.work
    assert Path(folder) == manifest.folder.resolve()
    return list(names)
