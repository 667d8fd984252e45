"""`manifest.json` in a sweep's folder: the runs of the sweep, and the job of each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from dino_exp.atomic import write_text_atomically
from dino_exp.errors import UserError
from dino_exp.regular_file import is_plain_name
from dino_exp.runs import former_names
from dino_exp.runs.run_directory import FORMAT, RunDirectory, refuse_newer, to_json
from dino_exp.runs.run_files import COUNT, FLAG, TABLE, TEXT, TEXTS, checked, read_object, set_aside

log = logging.getLogger(__name__)

FIELDS = {"launcher": TEXT, "settings": TABLE, "runs": TABLE}
ENTRY = {
    "overrides": TEXTS,
    "config_hash": TEXT,
    "job": TEXT.or_null(),
    "jobs": TEXTS,
    "retries": COUNT,
    "cancelled": FLAG,
    "pruned": FLAG,
}
LONGEST_NAME = 255  # bytes, in most file systems


@dataclass
class Entry:
    """A run of a sweep."""

    overrides: list[str]
    """The overrides that set it apart from the other runs."""
    config_hash: str
    """SHA-256 of all values that can change the result; empty if it was lost."""
    job: str | None = None
    """The present job: SLURM's id, with _ and the index in an array; `local` for this machine's queue."""
    jobs: list[str] = field(default_factory=list)
    """All jobs so far, the present one last."""
    retries: int = 0
    """Number of times that it was submitted again after a failure."""
    cancelled: bool = False
    """Whether `python -m launchers cancel` or a search stopped it, so that its job must not requeue it."""
    pruned: bool = False
    """Whether it was a search that stopped it, because other trials do better."""


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
    problems: list[str] = field(default_factory=list)
    """What is damaged in the file."""

    @classmethod
    def path(cls, folder: Path) -> Path:
        """Return the path of the manifest in a sweep's folder."""
        return folder / "manifest.json"

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Return the manifest of a folder, in present names.

        Runs that a damaged file has lost are those of the run directories.

        Raises:
            UserError: There is none, a newer version of this program wrote it, or a run's name is a path.
        """
        path, problems = cls.path(folder), list[str]()
        if not path.exists():
            raise UserError(
                f"{folder}: no manifest.json there; give the folder of a sweep that a launcher made, e.g. "
                "outputs/demo_sweep_teacher_temp."
            )
        content = read_object(path, FIELDS, problems)
        refuse_newer(content, path)
        manifest = cls.of(folder, content, problems)
        for name in manifest.runs:
            if not is_name(name):
                raise UserError(f"{path}: {name!r} is not the name of a run, which is a folder in {folder}.")
        if "runs" not in content:
            manifest.runs = {name: entry_of(RunDirectory(folder / name)) for name in run_names(folder)}
        return manifest

    @classmethod
    def of(cls, folder: Path, content: Mapping[str, Any], problems: list[str]) -> Manifest:
        """Return a manifest with the content of its file, in present names; damaged fields are empty."""
        runs = {}
        for name, entry in content.get("runs", {}).items():
            fields = entry if TABLE.fits(entry) else {}
            known = checked({key: fields[key] for key in ENTRY if key in fields}, ENTRY, name, problems)
            if not fields.keys() >= {"overrides", "config_hash"}:
                problems.append(f"manifest.json: {name} is incomplete.")
            runs[name] = Entry(**{"overrides": [], "config_hash": "", **known})
        problems += [f"manifest.json: no {name}." for name in FIELDS if name not in content]
        manifest = cls(folder, content.get("launcher", ""), content.get("settings", {}), runs, problems)
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
        try:
            config = table.present_config({"hydra": {"launcher": self.settings}})
            self.settings = config["hydra"]["launcher"]
        except (AttributeError, TypeError, ValueError):  # a key that is also the group of other keys
            self.problems.append("manifest.json: settings with keys that do not go together.")
        for entry in self.runs.values():
            entry.overrides = [table.present_word(word) for word in entry.overrides]

    def save(self) -> None:
        """Write the file atomically; one that was damaged is kept beside it."""
        if self.problems:
            kept = set_aside(self.path(self.folder))
            said = " ".join(self.problems[:3])
            log.warning("%s: %s It is kept as %s and written anew.", self.folder, said, kept.name)
            self.problems = []
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


def is_name(name: str) -> bool:
    """Return whether a text is the name of a folder, and no path or control characters."""
    return is_plain_name(name) and name.isprintable() and len(name.encode()) <= LONGEST_NAME


def run_names(folder: Path) -> list[str]:
    """Return the names of the run directories in a folder."""
    runs = [RunDirectory(path) for path in sorted(folder.iterdir()) if is_name(path.name)]
    return [run.path.name for run in runs if run.status_file.is_file() or run.config_file.is_file()]


def entry_of(run: RunDirectory) -> Entry:
    """Return what a run's directory says of its entry: the job in which it was last."""
    return Entry([], "", run.read_status().get("slurm_job_id") or "local")


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold the lock for changes of the manifest; load the manifest inside."""
    with FileLock(folder / ".manifest.lock"):
        yield
