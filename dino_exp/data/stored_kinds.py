"""In what kind of files the images at a path are stored, by the endings of names alone."""

from __future__ import annotations

import os
from pathlib import Path

from dino_exp.data.image_scan import Skipped, walk
from dino_exp.paths import expanded
from dino_exp.regular_file import open_regular

IMAGE_FILES, SHARDS, ROWS = "image_folder", "webdataset", "huggingface"
WORDS = {IMAGE_FILES: "image files", SHARDS: "tar shards", ROWS: "a Hugging Face set"}
"""What people call the files that each option of `data` reads."""
ENDINGS = {".tar": SHARDS, ".parquet": ROWS}
SAVED = ("state.json", "dataset_dict.json")
"""Files of which `save_to_disk` writes one into its folder."""


def kinds_at(value: str) -> dict[str, str]:
    """Return the options of `data` that can read what lies at a path or pattern, each with an example.

    Of a folder these are the kinds in it and in the first of its folders that has any. A text file is a
    list of what its first line names. Raises OSError.
    """
    path = expanded(value)
    if path.is_dir():
        return _in_folder(path)
    first = _first_line(path) if path.suffix == ".txt" and path.exists() else path.name
    kind = ENDINGS.get(Path(first).suffix.lower(), IMAGE_FILES)
    return {kind: first} if path.exists() or kind != IMAGE_FILES else {}


def other_kind(value: str | Path, own: str) -> str:
    """Return what to add to a command line whose `data` cannot read what is there, or "" if nothing can."""
    others = [kind for kind in kinds_at(str(value)) if kind != own]
    return "".join(f" It holds {WORDS[kind]}: add data={kind}." for kind in others)


def _in_folder(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    skipped = Skipped()
    for each in walk(folder, skipped):
        saved = next((name for name in SAVED if (folder / os.fsdecode(each.prefix) / name).is_file()), None)
        if saved:
            return {ROWS: os.fsdecode(each.prefix) + saved}
        if each.images:
            found.setdefault(IMAGE_FILES, os.fsdecode(each.prefix + each.images[0]))
        for ending, kind in ENDINGS.items():
            if example := skipped.example(ending):
                found.setdefault(kind, example)
        if found and each.prefix:
            break
    return found


def _first_line(path: Path) -> str:
    with open_regular(path) as file:
        lines = file.read(4096).decode("utf-8-sig", "surrogateescape").split("\n")
    return next((line.strip() for line in lines if line.strip()), "")
