"""`manifest.json` in a sweep's folder: the runs of the sweep, and the job of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from dino_exp.atomic import write_text_atomically
from dino_exp.errors import UserError
from dino_exp.runs import former_names
from dino_exp.runs.run_directory import FORMAT, RunDirectory, refuse_newer, to_json


@dataclass
class Entry:
    """A run of a sweep."""

    overrides: list[str]
    """The overrides that set it apart from the other runs."""
    config_hash: str
    """SHA-256 of all values that can change the result."""
    job: str | None = None
    """The present job: SLURM's id, with _ and the index in an array; `local` for this machine's queue."""
    jobs: list[str] = field(default_factory=list)
    """All jobs so far, the present one last."""
    retries: int = 0
    """Number of times that it was submitted again after a failure."""
    cancelled: bool = False
    """Whether `python -m launchers cancel` stopped it, so that its job must not requeue it."""


@dataclass
class Manifest:
    """The launcher and the runs of a sweep."""

    folder: Path
    launcher: str = ""
    """Launcher of the last submission: slurm or local."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its settings, as the fields of its settings class."""
    runs: dict[str, Entry] = field(default_factory=dict)
    """Runs by the names of their directories."""

    @classmethod
    def path(cls, folder: Path) -> Path:
        """Return the path of the manifest in a sweep's folder."""
        return folder / "manifest.json"

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Return the manifest of a folder, in present names.

        Raises:
            UserError: There is none, or a newer version of this program wrote it.
        """
        try:
            content = json.loads(cls.path(folder).read_text("utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{folder}: no manifest.json there; give the folder of a sweep that a launcher made, e.g. "
                "outputs/demo_sweep_teacher_temp."
            ) from None
        refuse_newer(content, cls.path(folder))
        runs = {name: Entry(**entry) for name, entry in content["runs"].items()}
        manifest = cls(folder, content["launcher"], content["settings"], runs)
        manifest.use_present_names()
        return manifest

    @classmethod
    def load_or_new(cls, folder: Path) -> Manifest:
        """Return the manifest of a folder, or an empty one if there is none."""
        return cls.load(folder) if cls.path(folder).exists() else cls(folder)

    def use_present_names(self) -> None:
        """Translate the former names that an older version wrote."""
        table = former_names.TABLE
        self.launcher = table.present_value("hydra/launcher", self.launcher)
        config = table.present_config({"hydra": {"launcher": self.settings}})
        self.settings = config["hydra"]["launcher"]
        for entry in self.runs.values():
            entry.overrides = [table.present_word(word) for word in entry.overrides]

    def save(self) -> None:
        """Write the file atomically."""
        content = {
            "format": FORMAT,
            "launcher": self.launcher,
            "settings": self.settings,
            "runs": {name: asdict(entry) for name, entry in self.runs.items()},
        }
        write_text_atomically(self.path(self.folder), to_json(content, indent=1))

    def directory(self, name: str) -> RunDirectory:
        """Return the directory of a run."""
        return RunDirectory(self.folder / name)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold the lock for changes of the manifest; load the manifest inside."""
    with FileLock(folder / ".manifest.lock"):
        yield
