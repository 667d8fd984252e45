"""`manifest.json` of a sweep's folder: which runs belong to it, and which job has each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from dino_exp.atomic import write_atomically
from dino_exp.errors import UserError
from dino_exp.runs import former_names
from dino_exp.runs.run_directory import FORMAT, RunDirectory, refuse_newer, to_json


@dataclass
class Entry:
    """One run of a sweep; its name is that of its directory."""

    overrides: list[str]
    """What sets it apart from the other runs."""
    config_hash: str
    """SHA-256 of all values that can change the result."""
    job: str | None = None
    """The job that has it now: SLURM's id, with _ and the array index; `local` for this machine's queue."""
    jobs: list[str] = field(default_factory=list)
    """All jobs that have had it, the present one last."""
    retries: int = 0
    """Times that it was submitted again after it had failed."""
    cancelled: bool = False
    """By `python -m launchers cancel`; its job may not put it back into the queue."""


@dataclass
class Manifest:
    """A sweep: its folder, its launcher, its runs."""

    folder: Path
    launcher: str = ""
    """Option of hydra/launcher's settings: slurm or local."""
    settings: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def path(cls, folder: Path) -> Path:
        """Where a sweep's manifest is."""
        return folder / "manifest.json"

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Return the manifest of a folder, in present names.

        Raises:
            UserError: there is none, or a newer version of this program wrote it.
        """
        try:
            content = json.loads(cls.path(folder).read_text())
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
        """The manifest of a folder, an empty one where there is none."""
        return cls.load(folder) if cls.path(folder).exists() else cls(folder)

    def use_present_names(self) -> None:
        """Translate what an older version wrote."""
        table = former_names.TABLE
        self.launcher = table.present_value("hydra/launcher", self.launcher)
        config = table.present_config({"hydra": {"launcher": self.settings}})
        self.settings = config["hydra"]["launcher"]
        for entry in self.runs.values():
            entry.overrides = [table.present_word(word) for word in entry.overrides]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        content = {
            "format": FORMAT,
            "launcher": self.launcher,
            "settings": self.settings,
            "runs": {name: asdict(entry) for name, entry in self.runs.items()},
        }
        text = to_json(content, indent=1)
        write_atomically(self.path(self.folder), lambda file: file.write(text.encode()))

    def directory(self, name: str) -> RunDirectory:
        """The directory of a run."""
        return RunDirectory(self.folder / name)


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Keep all others from changing the manifest; read it inside."""
    with FileLock(folder / ".manifest.lock"):
        yield
