"""Which files are meant: a folder, a pattern or a list of them, and those that hold the held-out images."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from dino_exp.errors import UserError

log = logging.getLogger(__name__)

HELD_OUT = ("val", "validation", "valid", "dev", "test")
"""Words in the names of held-out files and folders; the first that is there is taken."""


def existing(key: str, value: str, kinds: str) -> Path:
    """The folder or file that a key names; `kinds` says in the UserError what it may be."""
    path = absolute(value)
    if not path.exists():
        parent = path.parent
        while not parent.exists():
            parent = parent.parent
        raise UserError(f"{key} = {value}: there is no such folder or file ({parent} exists). Give {kinds}.")
    return path


def absolute(value: str) -> Path:
    """With ~ expanded and links kept, whose names matter."""
    return Path(os.path.abspath(Path(value).expanduser()))  # noqa: PTH100 (resolve follows links)


def beside(train: Path) -> Path | None:
    """The held-out folder or list beside one named `train`, if there is one."""
    if train.stem != "train":
        return None
    for name in HELD_OUT:
        candidate = train.with_name(name + train.suffix)
        if candidate.exists():
            log.info("held-out images: %s", candidate)
            return candidate
    return None


def files_of(key: str, value: str, endings: Sequence[str], kinds: str) -> list[Path]:
    """The files that a key names, in the order of the list or of their names.

    value: a folder, one file, a pattern with braces ({000..146}, {a,b}) or with *, ? and [], or a text file
    (.txt) with one path per line, relative to its own folder.
    Raises UserError, if none is there, or if one of the list or the braces is not.
    """
    path = absolute(value)
    if path.is_dir():
        found = sorted(entry for entry in path.iterdir() if is_one(entry, endings))
        if not found:
            raise UserError(f"{key} = {value}: no {endings[0]} files in that folder. Give {kinds}.")
        return found
    if path.exists():
        files = _listed(key, path) if path.suffix == ".txt" else [path]
    elif "{" in value:
        files = [Path(name) for name in expand_braces(str(path))]
    elif glob.has_magic(value):
        files = sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207 (absolute pattern)
        if not files:
            raise UserError(f"{key} = {value}: no file has such a name. Give {kinds}.")
    else:
        files = [existing(key, value, kinds)]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(
            f"{key} = {value}: {len(missing):,} of the {len(files):,} files are not there, the first is "
            f"{missing[0]}. Copy them, or leave them out."
        )
    return files


def training_part(files: Sequence[Path]) -> list[Path]:
    """The files without those that are named as held out; all, if all are."""
    return [file for file in files if held_out_word(file) is None] or list(files)


def held_out_part(files: Sequence[Path]) -> list[Path]:
    """The files of the first of the words in HELD_OUT that names any."""
    by_word: dict[str, list[Path]] = {}
    for file in files:
        word = held_out_word(file)
        if word:
            by_word.setdefault(word, []).append(file)
    return next((by_word[word] for word in HELD_OUT if word in by_word), [])


def held_out_beside(
    value: str, train: Sequence[Path], endings: Sequence[str], held_out: Callable[[str], list[Path]]
) -> list[Path]:
    """What val_root = auto means: files named as held out in the folder of those named `train`, or in the
    folder (or list) beside one named `train`, from which `held_out` takes its files; or none."""
    place = absolute(value)
    if place.is_dir() or all("train" in _words(file) for file in train):
        folder = place if place.is_dir() else train[0].parent
        named = held_out_part(sorted(entry for entry in folder.iterdir() if is_one(entry, endings)))
        if named and not set(named) & set(train):
            log.info("held-out images: %s%s", named[0], f" to {named[-1].name}" if len(named) > 1 else "")
            return named
    neighbor = beside(place if place.exists() else train[0].parent)
    return [] if neighbor is None else held_out(str(neighbor))


def held_out_word(file: Path) -> str | None:
    """The word of HELD_OUT in a file's name, as in `imagenet-val-000003.tar`; None without one."""
    words = _words(file)
    return next((word for word in HELD_OUT if word in words), None)


def is_one(path: Path, endings: Sequence[str]) -> bool:
    """Whether a path ends so and is not hidden."""
    return path.name.lower().endswith(tuple(endings)) and not path.name.startswith(".")


def expand_braces(pattern: str) -> list[str]:
    """`a{08..11}b{x,y}` as its names in order; the width of the numbers is that of the first."""
    group = re.search(r"\{([^{}]*)\}", pattern)
    if group is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", group[1])
    if numbers:
        width = len(numbers[1])
        parts = [f"{number:0{width}}" for number in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        parts = group[1].split(",")
    before, after = pattern[: group.start()], expand_braces(pattern[group.end() :])
    return [before + part + rest for part in parts for rest in after]


def _words(file: Path) -> list[str]:
    return re.split(r"[^a-z]+", file.name.lower())


def _listed(key: str, path: Path) -> list[Path]:
    try:
        lines = path.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{key} = {path}: not a text file ({error}).") from error
    files = [path.parent / Path(line.strip()).expanduser() for line in lines if line.strip()]
    if not files:
        raise UserError(f"{key} = {path}: an empty list. Write one file per line.")
    return files
