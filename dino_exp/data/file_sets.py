"""The files that data.root and data.val_root name: a folder, a pattern or a list, training or held-out."""

from __future__ import annotations

import codecs
import glob
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from dino_exp.data import stored_kinds
from dino_exp.errors import UserError
from dino_exp.paths import expanded

log = logging.getLogger(__name__)

HELD_OUT = ("val", "validation", "valid", "dev", "test")
"""Words in the names of held-out files and folders; of several that exist the first is used."""


def existing_path(key: str, value: str, kinds: str) -> Path:
    """Return the folder or file that a key names; raises UserError, which says with `kinds` what to give."""
    path = absolute_path(value)
    if not path.exists():
        parent = path.parent
        while not parent.exists():
            parent = parent.parent
        raise UserError(f"{key} = {value}: no such folder or file ({parent} exists). Give {kinds}.")
    return path


def absolute_path(value: str) -> Path:
    """Return the path with ~ expanded; links are kept, because their names matter."""
    return Path(os.path.abspath(expanded(value)))  # noqa: PTH100 (resolve follows links)


def held_out_siblings(train: Path) -> list[Path]:
    """Return the held-out folders or lists next to one named `train`, in the order of `HELD_OUT`."""
    if train.stem != "train":
        return []
    beside = (train.with_name(name + train.suffix) for name in HELD_OUT)
    return [path for path in beside if path.exists()]


def held_out_sibling(train: Path) -> Path | None:
    """Return the first held-out folder or list next to one named `train`, if there is one."""
    found = next(iter(held_out_siblings(train)), None)
    if found:
        log.info("Held-out images: %s", found)
    return found


def find_files(key: str, value: str, endings: Sequence[str], kinds: str) -> list[Path]:
    """Return the files that a key names, in the order of the list or of their names.

    value: a folder, one file, a pattern with braces ({000..146}, {a,b}) or with `*?[]`, or a text file
    (.txt) with one path per line, relative to its own folder.
    Raises UserError if nothing is found, or if a file of the list or the braces is missing.
    """
    path = absolute_path(value)
    if path.is_dir():
        return _distinct(key, value, _files_of(key, path, endings, kinds))
    if path.exists():
        files = _listed(key, path) if path.suffix == ".txt" else [path]
    elif "{" in value:
        files = [Path(name) for name in expand_braces(str(path))]
    elif glob.has_magic(value):
        files = sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207 (absolute pattern)
        if not files:
            raise UserError(f"{key} = {value}: no file matches the pattern. Give {kinds}.")
    else:
        files = [existing_path(key, value, kinds)]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(
            f"{key} = {value}: {len(missing):,} of the {len(files):,} files are missing, the first is "
            f"{missing[0]}. Copy them, or do not list them."
        )
    return _distinct(key, value, files)


def training_files(files: Sequence[Path]) -> list[Path]:
    """Return the files that are not named as held out; all files if all are."""
    return [file for file in files if held_out_word(file) is None] or list(files)


def held_out_files(files: Sequence[Path]) -> list[Path]:
    """Return the files that are named by the first word of HELD_OUT that names any."""
    by_word: dict[str, list[Path]] = {}
    for file in files:
        word = held_out_word(file)
        if word:
            by_word.setdefault(word, []).append(file)
    return next((by_word[word] for word in HELD_OUT if word in by_word), [])


def find_held_out(
    value: str, train: Sequence[Path], endings: Sequence[str], held_out: Callable[[str], list[Path]]
) -> list[Path]:
    """Return the held-out files that data.val_root = auto means, if any.

    These are the files named as held out in the folder of the training files, or else those that `held_out`
    returns for the held-out folder (or list) next to one named `train`.

    Args:
        value: data.root.
        train: the training files in it.
    """
    root = absolute_path(value)
    if root.is_dir() or all("train" in _words(file) for file in train):
        named = held_out_files(_files_in(root if root.is_dir() else train[0].parent, endings))
        if named and not set(named) & set(train):
            log.info("Held-out images: %s%s", named[0], f" to {named[-1].name}" if len(named) > 1 else "")
            return named
    sibling = held_out_sibling(root if root.exists() else train[0].parent)
    return [] if sibling is None else held_out(str(sibling))


def refuse_training_files(val_root: str | None, held_out: Sequence[Path], train: Sequence[Path]) -> None:
    """Raise UserError if a held-out file is among the training files."""
    real = set(map(os.path.realpath, train))
    shared = [file for file in held_out if os.path.realpath(file) in real]
    if shared:
        raise UserError(
            f"data.val_root = {val_root}: {shared[0]} is among the training files; give held-out files, or "
            "null for none."
        )


def held_out_word(file: Path) -> str | None:
    """Return the word of HELD_OUT in a file's name, as in `imagenet-val-000003.tar`; None without one."""
    words = _words(file)
    return next((word for word in HELD_OUT if word in words), None)


def expand_braces(pattern: str) -> list[str]:
    """Return the names that `a{08..11}b{x,y}` stands for, in order; all numbers are as wide as the first."""
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


def _files_of(key: str, folder: Path, endings: Sequence[str], kinds: str) -> list[Path]:
    found = _files_in(folder, endings)
    inner = [entry for entry in sorted(folder.iterdir()) if _is_folder_of(entry, endings)]
    names = ", ".join(entry.name for entry in inner[:4])
    if found and inner:
        log.warning("%s = %s: the %s files in its folders (%s) are not read.", key, folder, endings[0], names)
    elif inner:
        proposed = next((entry for entry in inner if entry.name == "train"), inner[0])
        raise UserError(
            f"{key} = {folder}: no {endings[0]} files in that folder, but in its folders ({names}). Give "
            f"one, {key}={proposed}, or a pattern for several."
        )
    elif not found:
        remedy = stored_kinds.other_kind(folder, stored_kinds.ENDINGS[endings[0]]) or f" Give {kinds}."
        raise UserError(f"{key} = {folder}: no {endings[0]} files in that folder.{remedy}")
    return found


def _is_folder_of(entry: Path, endings: Sequence[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir() and bool(_files_in(entry, endings))
    except OSError:
        return False


def _distinct(key: str, value: str, files: list[Path]) -> list[Path]:
    """Return the files; raises UserError where two of them are one, which would be read twice."""
    seen: dict[str, Path] = {}
    for file in files:
        first = seen.setdefault(os.path.realpath(file), file)
        if first is not file:
            where = "is listed twice" if first == file else f"is the same file as {first}"
            raise UserError(f"{key} = {value}: {file} {where}. Name each file once.")
    return files


def _files_in(folder: Path, endings: Sequence[str]) -> list[Path]:
    found = (entry for entry in folder.iterdir() if entry.name.lower().endswith(tuple(endings)))
    return sorted(entry for entry in found if not entry.name.startswith("."))


def _words(file: Path) -> list[str]:
    return re.split(r"[^a-z]+", file.name.lower())


def _listed(key: str, path: Path) -> list[Path]:
    content = path.read_bytes()
    if b"\0" in content:
        raise UserError(f"{key} = {path}: not a text file.")
    lines = [os.fsdecode(line.strip()) for line in content.removeprefix(codecs.BOM_UTF8).splitlines()]
    files = [path.parent / expanded(line) for line in lines if line]
    if not files:
        raise UserError(f"{key} = {path}: an empty list. Write one file per line.")
    return files
