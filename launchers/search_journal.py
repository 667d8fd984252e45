"""Mending of Optuna's journal, some lines of which a crash, a disk or an editor has damaged.

Each line is an operation in JSON. Optuna reads no line behind a damaged one, and numbers studies and trials
by the lines that create them: if such a line is missing, every later trial gets another one's results.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from dino_exp.atomic import write_atomically
from dino_exp.errors import UserError, in_words, warn
from dino_exp.regular_file import read_regular

Operation = dict[str, Any]

CREATE_STUDY, CREATE_TRIAL = 0, 4
MINIMIZE, MAXIMIZE = 1, 2
SHORTEST_LINE = 100
"""About the bytes of a short line; of a longer damaged one, several may have been."""
MOST_REFUSED = 100
"""Operations that Optuna may refuse, from which on it is another program's file."""


def mend(journal: Path, study: str, maximize: bool = True) -> None:
    """Make a damaged journal readable; the file as it was stays beside it.

    An incomplete last line is dropped without a word, since a killed process leaves one. A trial whose result
    is lost is running afterwards, and so is queued again, and found finished in its run directory.

    Args:
        journal: the file, if there is one.
        study: the name for a study whose creation is lost, if the journal names no other.
        maximize: whether that study looks for the highest value.

    Raises:
        UserError: it cannot be read or mended.
    """
    if journal.is_symlink():
        raise UserError(f"{journal}: a link, which is not followed; replace it by the file itself.")
    try:
        content = read_regular(journal)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{in_words(error)}. Trials are recorded in it; make it readable.") from error
    *lines, rest = content.split(b"\n")
    lines += [rest] if _operation(rest) else []
    mended = _Mended(study, MAXIMIZE if maximize else MINIMIZE)
    for line in lines:
        mended.add(line)
    kept = _replayable(journal, mended.operations)
    if mended.complete and len(kept) == len(lines):
        if rest:
            _write(journal, b"".join(line + b"\n" for line in lines))
        return
    aside = _free_name(journal)
    _write(aside, content)
    fresh = (json.dumps(each, separators=(",", ":")).encode() for each in kept)
    _write(journal, b"".join(line + b"\n" for line in fresh))
    lost = len(lines) - sum(each.get("worker_id") != _Mended.WORKER for each in kept)
    warn(
        [
            f"{journal}: damaged. {lost} of {len(lines)} lines were dropped, and the others are used; the "
            f"file as it was is {aside.name}. Trials without a result are looked up in their run directories."
        ]
    )


@dataclass
class _Mended:
    """The operations of the readable lines, with those that must have created what they refer to."""

    study: str
    direction: int
    operations: list[Operation] = field(default_factory=list)
    complete: bool = True
    studies: int = 0
    trials: int = 0
    room: int = 1
    """Most creations in a row that can be lost; otherwise a number is damaged, and not a line missing."""

    WORKER = "mended"

    def add(self, line: bytes) -> None:
        operation = _operation(line)
        if operation is None:
            self.complete = False
            self.room += 1 + len(line) // SHORTEST_LINE
            return
        while self._is_next(operation.get("study_id"), self.studies):
            name = self.study if not self.studies else f"lost-{self.studies}"
            self._create({"op_code": CREATE_STUDY, "study_name": name, "directions": [self.direction]})
        while self._is_next(operation.get("trial_id"), self.trials):
            self._create({"op_code": CREATE_TRIAL, "study_id": self.studies - 1, "datetime_start": None})
        self._append(operation)

    def _is_next(self, number: Any, known: int) -> bool:
        return isinstance(number, int) and known <= number < known + self.room

    def _create(self, operation: Operation) -> None:
        self.complete = False
        self._append(operation | {"worker_id": self.WORKER})

    def _append(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.studies += operation.get("op_code") == CREATE_STUDY
        self.trials += operation.get("op_code") == CREATE_TRIAL


class _Operations(BaseJournalBackend):
    """Operations in memory, and how far Optuna has read them."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations
        self.position = -1

    def read_logs(self, log_number_from: int) -> Iterator[Operation]:
        for position in range(log_number_from, len(self.operations)):
            self.position = position
            yield self.operations[position]

    def append_logs(self, logs: list[Operation]) -> None:
        raise NotImplementedError


def _replayable(journal: Path, operations: Sequence[Operation]) -> list[Operation]:
    """Return the operations without those that Optuna cannot apply."""
    kept = list(operations)
    for _ in range(MOST_REFUSED):
        backend = _Operations(kept)
        try:
            JournalStorage(backend)
        except Exception:  # of every kind, for there is no check
            del kept[backend.position]
        else:
            return kept
    raise UserError(
        f"{journal}: not a journal that this version of Optuna can read. Move it away; runs that have "
        "finished are not trained again."
    )


def _operation(line: bytes) -> Operation | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _free_name(journal: Path) -> Path:
    names = [f"{journal.name}.damaged", *(f"{journal.name}.damaged-{number}" for number in range(2, 1000))]
    return next(path for path in map(journal.with_name, names) if not path.exists())


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{in_words(error)}. Trials are recorded in it; make it writable.") from error
