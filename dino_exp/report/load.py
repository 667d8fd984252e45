"""A run's or a sweep's folder as data, whatever state the files are in.

Nothing here raises for what a run wrote or failed to write: what is missing is said in `problems`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dino_exp.config import former_names
from dino_exp.errors import UserError
from dino_exp.report.axes import Value, find_axes, value_text
from dino_exp.report.evaluations import Result, read_evaluations
from dino_exp.report.files import number, read_config, read_json, read_lines
from dino_exp.run_directory import RunDirectory, newer_format
from launchers.children import tail
from launchers.manifest import Entry, Manifest
from launchers.states import SILENT_SECONDS, Observer

RUN_FILES = ("config.yaml", "status.json", "metrics.jsonl", "summary.json")
RUN_NAME = re.compile(r".+_[0-9a-f]{8}(-\d+)?")
"""What run folders are called, also those in which nothing was written yet."""
MOST_POINTS = 150
"""Of a curve, in a page."""
SWEEP_POINTS = 24_000
"""Of the curves of all runs of a sweep together."""
SEED = "trainer.seed"
UNFINISHED = ("running", "pending", "preempted")


@dataclass
class RunData:
    """One run, as far as its files tell."""

    path: Path
    state: str = "unknown"
    """That of status.json, or lost or pending where nobody has the run."""
    note: str = ""
    """What a person should know beside the state."""
    overrides: list[str] = field(default_factory=list)
    """What sets it apart in its sweep, from the manifest."""
    values: dict[str, Value] = field(default_factory=dict)
    """Its place on each of the sweep's axes."""
    config: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """Records of metrics.jsonl by step; in a sweep only some of them."""
    evaluations: list[Result] = field(default_factory=list)
    """What `evaluate.py` found, oldest first."""
    problems: list[str] = field(default_factory=list)
    """What is missing or broken, a sentence each."""
    last_words: str = ""
    """Of a run that failed or was lost."""

    @property
    def name(self) -> str:
        """The run's id."""
        return self.path.name

    @property
    def label(self) -> str:
        """What sets it apart, or its name where nothing does."""
        swept = [f"{key}={value_text(value)}" for key, value in self.values.items()] or self.overrides
        return " ".join(swept) or self.name

    @property
    def verdict(self) -> str:
        """One of `dino_exp.verdict.WORDS`, perhaps of another version, or nothing."""
        seen = (record.get("verdict") for record in reversed(self.metrics))
        word = self.summary.get("verdict") or next((word for word in seen if word), "")
        return str(word)

    @property
    def outcome(self) -> str:
        """The verdict of a run that came to one, else its state; of a run that goes on both."""
        ended_badly = self.state in ("failed", "lost", "cancelled") and self.verdict != "diverged"
        if ended_badly or not self.verdict:
            return self.state
        return f"{self.state}: {self.verdict}" if self.state in UNFINISHED else self.verdict

    @property
    def evidence(self) -> str:
        """The sentence behind the verdict; for a run without a summary, from its last figures."""
        if self.summary.get("evidence"):
            return str(self.summary["evidence"])
        shares = {
            "teacher entropy": self.last("teacher/entropy_share"),
            "KL": self.last("kl_share"),
            "mutual information": self.last("teacher/mutual_information_share"),
        }
        known = [f"{name} is {share:.3f} of ln K" for name, share in shares.items() if share is not None]
        return f"at step {self.metrics[-1]['step']:,}, {', '.join(known)}" if known and self.metrics else ""

    @property
    def step(self) -> int | None:
        """The last step that is known of."""
        steps = [number(self.status.get("step")), number(self.summary.get("steps"))]
        steps += [number(record["step"]) for record in self.metrics[-1:]]
        known = [step for step in steps if step is not None]
        return int(max(known)) if known else None

    @property
    def total_steps(self) -> int | None:
        """Where the run ends."""
        total = number(self.status.get("total_steps"))
        return None if total is None else int(total)

    @property
    def ln_k(self) -> float | None:
        """The loss of a uniform collapse."""
        return self.last("ln_k")

    @property
    def knn(self) -> float | None:
        """k-NN of the trained teacher, percent; None for a run that ended before it was measured."""
        if "knn_top1" in self.summary:
            return number(self.summary["knn_top1"])
        trained = [value for step, value in self.series("knn_top1") if step > 0 and value is not None]
        return trained[-1] if trained else None

    @property
    def untrained_knn(self) -> float | None:
        """k-NN of the untrained network, percent; None where the run began with others' weights."""
        if self.config.get("init_from"):
            return None
        known = number(self.summary.get("untrained_knn_top1"))
        if known is None:
            known = next((value for step, value in self.series("knn_top1") if step == 0), None)
        return known

    def last(self, key: str) -> float | None:
        """The last known value of a metric."""
        final = self.summary.get("final")
        known = number(self.summary.get(key))
        if known is None and isinstance(final, dict):
            known = number(final.get(key))
        if known is None and not (isinstance(final, dict) and key in final):
            values = (number(record[key]) for record in reversed(self.metrics) if key in record)
            known = next((value for value in values if value is not None), None)
        return known

    def series(self, key: str) -> list[tuple[int, float | None]]:
        """Step and value wherever a metric was logged; None where it was not a finite number."""
        return [(int(record["step"]), number(record[key])) for record in self.metrics if key in record]


@dataclass
class SweepData:
    """The runs of a folder, and what sets them apart."""

    path: Path
    runs: list[RunData] = field(default_factory=list)
    axes: dict[str, list[Value]] = field(default_factory=dict)
    """Swept keys and the values that they take: numbers in order, then words."""
    alike: dict[str, list[str]] = field(default_factory=dict)
    """Keys that change together with an axis, so that they are none themselves."""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's."""
        return self.path.resolve().name

    @property
    def over(self) -> bool:
        """Whether no run will change any more by itself."""
        return not any(run.state in UNFINISHED for run in self.runs)


def load(path: Path) -> RunData | SweepData:
    """A run's folder, or a sweep's.

    Raises:
        UserError: if it is neither. An empty folder is a sweep without runs.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give that of a run or of a sweep, e.g. outputs/demo.")
    if any((path / name).exists() for name in RUN_FILES):
        return load_run(path)
    folders = run_folders(path)
    if folders or Manifest.path(path).exists():
        return load_sweep(path)
    if RUN_NAME.fullmatch(path.resolve().name):
        return load_run(path)
    left = [each for each in path.iterdir() if each.name != "report" and not each.name.startswith(".")]
    if left:
        inside = sorted(each.name for each in left if each.is_dir() and run_folders(each))
        hint = f" Its folder {inside[0]} holds some." if inside else ""
        raise UserError(f"{path}: neither a run nor a sweep: no config.yaml in it or in its folders.{hint}")
    return load_sweep(path)


def run_folders(path: Path) -> list[Path]:
    """The folders in `path` that are runs, or were made to be."""
    folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    return [
        each
        for each in folders
        if any((each / name).exists() for name in RUN_FILES) or RUN_NAME.fullmatch(each.name)
    ]


def load_run(path: Path, most: int | None = None) -> RunData:
    """A run's folder; the problems say what it lacks.

    Args:
        path: the run directory.
        most: about how many records of its metrics to read; None is all.
    """
    run = RunData(path)
    run.status = read_json(path / "status.json", run.problems)
    if newer_format(run.status):
        run.problems.append(f"status.json: {newer_format(run.status)}. What is shown here may be wrong.")
    run.summary = former_names.TABLE.present_record(read_json(path / "summary.json", run.problems))
    run.metrics = read_lines(path / "metrics.jsonl", run.problems, most)
    run.evaluations = read_evaluations(path, run.problems)
    if most is None:
        run.config = read_config(path / "config.yaml", run.problems)
    if not run.metrics:
        run.problems.append("No metrics were logged.")
    elif run.knn is None:
        run.problems.append("No k-NN of the trained network was measured.")
    lost = [name for name in ("loss", "teacher/entropy_share") if _not_finite(run, name)]
    run.problems += [f"{name} is not a number at step {_not_finite(run, name):,}." for name in lost]
    run.state, run.note = state_of(run)
    if run.state in ("failed", "lost"):
        run.last_words = last_words(path, [])
    return run


def _not_finite(run: RunData, key: str) -> int | None:
    return next((step for step, value in run.series(key) if value is None), None)


def state_of(run: RunData) -> tuple[str, str]:
    """The state of a run without a manifest: a silent one that nobody holds is lost."""
    known = run.status.get("state") or run.summary.get("state")
    if not known:
        return ("unknown", "no status.json") if run.metrics else ("pending", "nothing was logged yet")
    heartbeat = number(run.status.get("heartbeat"))
    silent = heartbeat is None or time.time() - heartbeat > SILENT_SECONDS
    if known == "running" and silent and not _held(run.path):
        since = "" if heartbeat is None else f" since {utc(heartbeat)}"
        return "lost", f"no sign of life{since}"
    return str(known), ""


def _held(path: Path) -> bool:
    try:
        return RunDirectory(path).is_held()
    except OSError:  # another person's folder: then only its heartbeat speaks
        return False


def utc(seconds: float | None) -> str:
    """A time in seconds since 1970 as people read it; nothing for what is no time."""
    try:
        return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""


def last_words(path: Path, job_logs: Iterable[Path], lines: int = 6) -> str:
    """The end of a run's traceback or log, or of its job's log where it never came to speak."""
    for place in (path / "traceback.txt", path / "log.txt", *job_logs):
        try:
            text = tail(place, lines).strip()
        except OSError:
            continue
        if text:
            return text
    return ""


# ---- sweeps ------------------------------------------------------------------------------------------------


def load_sweep(path: Path) -> SweepData:
    """A folder of runs, with a launcher's manifest or without."""
    sweep = SweepData(path)
    manifest = _manifest(path, sweep.problems)
    folders = {each.name: each for each in run_folders(path)}
    names = [*manifest.runs, *(name for name in folders if name not in manifest.runs)]
    most = max(24, min(MOST_POINTS, SWEEP_POINTS // max(1, len(names))))
    sweep.runs = [load_run(path / name, most) for name in names]
    if manifest.runs:
        _states_from(manifest, sweep)
    find_axes(sweep)
    data = sweep.axes.get("data.name") or sweep.axes.get("experiment") or []
    if len(data) > 1:
        some = ", ".join(map(value_text, data[:6]))
        sweep.problems.append(f"k-NN is of several data sets ({some}), and does not compare between them.")
    if not sweep.runs:
        sweep.problems.append("There are no runs in this folder.")
    return sweep


def _manifest(path: Path, problems: list[str]) -> Manifest:
    """The manifest as far as it can be understood; keys of another version are left out."""
    content = read_json(Manifest.path(path), problems)
    if newer_format(content):
        problems.append(f"manifest.json: {newer_format(content)}. What is shown here may be wrong.")
    manifest = Manifest(path, str(content.get("launcher") or ""))
    known = {each.name for each in fields(Entry)}
    entries = content.get("runs")
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        values = (
            {key: value for key, value in entry.items() if key in known} if isinstance(entry, dict) else {}
        )
        overrides = values.get("overrides")
        values["overrides"] = list(map(str, overrides)) if isinstance(overrides, list) else []
        manifest.runs[name] = Entry(**{"config_hash": "", **values})
    manifest.use_present_names()
    return manifest


def _states_from(manifest: Manifest, sweep: SweepData) -> None:
    """What launchers and SLURM know of the runs goes before what their files say."""
    runs = {run.name: run for run in sweep.runs}
    readable = {
        name: entry
        for name, entry in manifest.runs.items()
        if not any("status.json" in problem for problem in runs[name].problems)
    }
    for name, entry in manifest.runs.items():
        runs[name].overrides = entry.overrides
    for run in sweep.runs:
        if run.name not in manifest.runs:
            run.note = "not in the manifest"
    try:
        states = Observer().observe(Manifest(manifest.folder, manifest.launcher, {}, readable))
    except (OSError, ValueError, TypeError) as error:
        sweep.problems.append(f"Who has the runs could not be asked: {error}.")
        return
    for state in states:
        run = runs[state.name]
        run.state, run.note = state.state, state.note
        if run.state in ("failed", "lost", "cancelled"):
            logs = sorted((manifest.folder / "jobs").glob(f"{state.entry.job}_*_log.out"))
            run.last_words = last_words(run.path, logs)
