"""The log of a training, ours or another code's: loss by step, K, and whatever else is known.

Ours is a run directory or its `metrics.jsonl`. Another code's is a file of JSON lines, each with a loss and a
step or an epoch, such as the `log.txt` of the released code, with one line per epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from statistics import median
from typing import Any

from dino_exp.config.stored import read_if_possible
from dino_exp.dino.verdict import WINDOW
from dino_exp.errors import UserError
from dino_exp.metrics import KNN
from dino_exp.report.loading import state_of
from dino_exp.report.run_data import RunData
from dino_exp.runs import former_names
from dino_exp.runs.manifest import Manifest
from dino_exp.runs.metrics_lines import each_line
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.runs.run_files import number, parse_json
from launchers.children import tail

POSITIONS = {"step": ("step", "global_step", "iteration", "iter", "it"), "epoch": ("epoch", "train_epoch")}
LOSS_KEYS = ("loss", "train_loss", "train/loss", "loss/train", "dino_loss", "train_dino_loss")
GRAD_NORM_KEYS = ("grad_norm", "train_grad_norm", "train/grad_norm")
OUT_DIM_KEYS = ("out_dim", "head.out_dim", "num_prototypes", "n_prototypes", "K")
"""Names match in any case, except K: a small k may be that of k-NN."""
LIKELY_OUT_DIMS = tuple(2**power for power in range(6, 19))
"""Values of K that are tried if K is not known and the loss stands still at ln K."""

AT_LN_K = 0.002
"""Distance from ln K, as a share of it, within which a loss means uniform collapse; runs that only start
slowly stay three times as far away."""
FEWEST_LINES = 10
"""Fewest lines of a log by steps that are judged."""


@dataclass
class Record:
    """One logged step or epoch."""

    at: int
    """The step, or the epoch in a log by epochs."""
    values: dict[str, Any]
    """The logged values; the loss and gradient norm are `loss` and `grad_norm`, and None if not finite."""

    def get(self, key: str) -> float | None:
        """Return a metric, or None if it was not logged or is not finite."""
        return number(self.values.get(key))


@dataclass
class TrainingLog:
    """Everything that is known about a training."""

    path: Path
    records: list[Record]
    """The records with a loss, in order; at least one."""
    unit: str = "step"
    """What `Record.at` counts: step or epoch, or line if the log has neither."""
    out_dim: int | None = None
    """The number of prototypes, K."""
    how_known: str = ""
    """How K was found, if it was neither given nor logged."""
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration of a run of ours."""
    state: str = ""
    """State of a run of ours, as in its report: running, finished, lost, ..."""
    state_note: str = ""
    """What a person should know besides the state."""
    status: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    knn: list[tuple[int, float]] = field(default_factory=list)
    """Step and k-NN top-1 of the teacher in percent; step 0 is the untrained network."""
    broken_lines: int = 0

    @property
    def ours(self) -> bool:
        """Whether the records have this project's verdicts."""
        return bool(self.records) and "verdict" in self.records[-1].values

    @property
    def words(self) -> list[str]:
        """The verdict of each record; empty in another code's log."""
        return [str(record.values.get("verdict") or "") for record in self.records]

    @property
    def verdict(self) -> str:
        """The last verdict."""
        return self.words[-1]

    @property
    def healthy(self) -> bool:
        """Whether the last verdict is healthy."""
        return self.verdict == "healthy"

    @property
    def early(self) -> bool:
        """Whether the log is too short to judge."""
        if self.ours:
            return self.verdict == "warming-up"
        return len(self.records) < (WINDOW if self.unit == "epoch" else FEWEST_LINES)

    def since(self, holds: Callable[[Record], bool]) -> Record | None:
        """Return the first record of the stretch up to the end in which a condition holds; None if none."""
        stretch = list(takewhile(holds, reversed(self.records)))
        return stretch[-1] if stretch else None

    def count_since(self, first: Record) -> int:
        """Return the number of records from `first` to the end."""
        return sum(record.at >= first.at for record in self.records)

    def position(self, record: Record) -> str:
        """Return where a record is, e.g. step 1,181."""
        return f"{self.unit} {record.at:,}"

    @property
    def last(self) -> Record:
        """The last record."""
        return self.records[-1]

    @property
    def ln_k(self) -> float | None:
        """The loss of a uniform collapse; None if K is not known."""
        return math.log(self.out_dim) if self.out_dim else None

    def setting(self, key: str) -> Any:
        """Return a value of the configuration by its dotted key, or None if it is not known."""
        node: Any = self.config
        for name in key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        return node

    @property
    def batch_size(self) -> int | None:
        """Images per step; None if not known."""
        return self.setting("trainer.batch_size")

    @property
    def batch_factor(self) -> float:
        """κ of a run of ours: steps of its recipe (`trainer.reference_batch`) in one of its own; 1 if not."""
        batch, reference = number(self.batch_size), number(self.setting("trainer.reference_batch"))
        return batch / reference if batch and reference else 1.0

    @property
    def stop_step(self) -> int | None:
        """The step at which a run of ours ends."""
        total = number(self.status.get("total_steps"))
        if total is None and self.state in ("finished", "collapsed"):
            total = number(self.summary.get("steps"))
        return None if total is None else int(total)

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps per epoch of a run of ours, from its data set or length, else from the logged epochs."""
        epochs, size = number(self.setting("trainer.epochs")), number(self.setting("data.train_size"))
        if size and self.batch_size:
            return size // self.batch_size
        if self.stop_step and epochs and not self.setting("trainer.max_steps"):
            return self.stop_step / epochs
        logged = [(record.at, record.get("epoch")) for record in self.records if self.unit == "step"]
        later = [(step, epoch) for step, epoch in logged if epoch]
        if not later:
            return None
        least = max(step / (epoch + 1) for step, epoch in later)
        most = min((step - 1) / epoch for step, epoch in later)
        return (least + most) / 2

    @property
    def length(self) -> int:
        """Number of steps of the schedules of a run of ours; 0 if not known."""
        epochs, per_epoch = number(self.setting("trainer.epochs")), self.steps_per_epoch
        return round(epochs * per_epoch) if epochs and per_epoch else 0

    @property
    def images(self) -> int | None:
        """Number of training images, up to one batch; None if not known."""
        size = self.setting("data.train_size")
        if size is None and self.steps_per_epoch and self.batch_size:
            size = round(self.steps_per_epoch * self.batch_size)
        return size


def read_log(path: Path, out_dim: int | None = None) -> TrainingLog:
    """Read the log in a run directory or file; `out_dim` is K for logs that do not have it.

    Raises:
        UserError: `path` has no log of a training, or `out_dim` is less than 2.
    """
    if out_dim is not None and out_dim < 2:
        raise UserError(f"--out-dim {out_dim}: K is the number of prototypes, 2 or more.")
    file = _log_file(path)
    lines, broken = _objects(file)
    folder = file.parent if file.name == "metrics.jsonl" else None
    log = TrainingLog(file if folder is None else folder, [], broken_lines=broken)
    if folder is not None:
        lines = [former_names.TABLE.present_record(line) for line in lines]
        log.config = read_if_possible(folder / "config.yaml", [])
        log.status, log.summary = RunDirectory(folder).read_status(), RunDirectory(folder).read_summary()
        if log.status or log.summary:
            log.state, log.state_note = state_of(RunData(folder, status=log.status, summary=log.summary))
    log.unit = _unit(lines)
    log.records = _records(lines, log.unit)
    log.knn = sorted(
        (int(at), knn)
        for line in lines
        if (at := number(line.get("step"))) is not None and (knn := number(line.get(KNN.key))) is not None
    )
    if not log.records:
        found = ", ".join(sorted({key for line in lines[:20] for key in line})[:12])
        raise UserError(
            f"{file}: no line has a loss under any of the names {', '.join(LOSS_KEYS)}; the lines have: "
            f"{found or 'nothing'}."
        )
    _find_out_dim(log, lines, out_dim)
    return log


def _log_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: no such file or folder.")
    if (path / "metrics.jsonl").is_file():
        return path / "metrics.jsonl"
    if (path / "config.yaml").is_file():
        words = tail(path / "traceback.txt", 1).strip()
        raise UserError(
            f"{path}: no metrics.jsonl; nothing was logged yet." + (f" It failed: {words}" if words else "")
        )
    if (path / "log.txt").is_file():  # the released code's
        return path / "log.txt"
    runs = sorted(file.parent.name for file in path.glob("*/metrics.jsonl"))
    if Manifest.path(path).exists() or runs:
        example = f", e.g. {path / runs[0]}" if runs else ""
        raise UserError(f"{path}: a sweep; give one of its runs{example}.")
    raise UserError(f"{path}: no metrics.jsonl or log.txt in it; give a run directory or a log file.")


def _objects(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the lines that are JSON objects, and the number of other lines."""
    lines, count = [], 0
    try:
        for text in filter(bytes.strip, each_line(file)):
            count += 1
            with suppress(ValueError):
                if isinstance(content := parse_json(text), dict):
                    lines.append(content)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{file}: {error}.") from None
    if not count:
        raise UserError(f"{file}: empty; nothing was logged yet.")
    if not lines:
        example = '{"epoch": 3, "train_loss": 9.2}'
        raise UserError(f"{file}: not a log of JSON lines, such as {example}.")
    return lines, count - len(lines)


def _unit(lines: list[dict[str, Any]]) -> str:
    for unit, keys in POSITIONS.items():
        if any(number(value) is not None for line in lines for value in _named(line, keys)[:1]):
            return unit
    return "line"


def _records(lines: list[dict[str, Any]], unit: str) -> list[Record]:
    """Return the lines with a loss, in order; of a step logged twice, as after a restart, the later line."""
    records: dict[int, Record] = {}
    for count, line in enumerate(lines):
        losses, gradients = _named(line, LOSS_KEYS), _named(line, GRAD_NORM_KEYS)
        if not losses:
            continue
        at = next(map(number, _named(line, POSITIONS.get(unit, ()))), None)
        values = dict(line) | {"loss": _value(losses[0])}
        if gradients:
            values["grad_norm"] = _value(gradients[0])
        records[count if at is None else int(at)] = Record(count if at is None else int(at), values)
    return [records[at] for at in sorted(records)]


def _named(line: dict[str, Any], keys: tuple[str, ...]) -> list[Any]:
    """Return the values that a line has under these names, in their order; names match in any case."""
    known = {name.lower(): value for name, value in line.items()} | line
    return [known[key] for key in keys if key in known]


def _value(value: Any) -> float | None:
    """Return a finite number, also if it was written as text, or None."""
    try:
        return number(float(value))
    except (TypeError, ValueError):
        return None


def _find_out_dim(log: TrainingLog, lines: list[dict[str, Any]], given: int | None) -> None:
    """Set K: given, configured, logged, or found from a loss that stands still at ln K."""
    configured, logged = number(log.setting("head.out_dim")), _logged_out_dim(lines)
    log.out_dim = given or (int(configured) if configured and configured >= 2 else None) or logged
    losses = [loss for record in log.records[-5:] if (loss := record.get("loss")) is not None]
    if log.out_dim or len(losses) < 3:
        return
    near = [k for k in LIKELY_OUT_DIMS if all(abs(loss / math.log(k) - 1) < AT_LN_K for loss in losses)]
    if near:
        log.out_dim = near[0]
        log.how_known = f"K was not given; {median(losses):.4f} is ln {near[0]:,}"


def _logged_out_dim(lines: list[dict[str, Any]]) -> int | None:
    for line in lines:
        ln_k = number(line.get("ln_k"))
        if ln_k and math.log(2) <= ln_k < 50:
            return round(math.exp(ln_k))
        for node in (line, *(value for value in line.values() if isinstance(value, dict))):
            out_dim = next(map(number, _named(node, OUT_DIM_KEYS)), None)
            if out_dim and out_dim >= 2:
                return int(out_dim)
    return None
