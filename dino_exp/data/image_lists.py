"""Text files that list images, one path per line, with or without labels."""

from __future__ import annotations

import codecs
import logging
import os
from array import array
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dino_exp.errors import UserError, in_words
from dino_exp.paths import expanded
from dino_exp.regular_file import open_regular

log = logging.getLogger(__name__)

LOOKED_AT = 256
"""Listed files that are looked for at the start, evenly spread; on a network disk each takes a while."""


class ListedImages(NamedTuple):
    """The images of a list, with labels as numbers of `classes`, or without labels (classes = [])."""

    paths: bytearray
    ends: array[int]
    labels: array[int]
    classes: list[str]
    places: array[int]
    """A hash of each image's path without links in its folders."""


def read_list(key: str, path: Path, kinds: str) -> ListedImages:
    """Read a list of paths, relative to its folder, each with a label after a tab, comma or space, or none.

    A comma or a space separates only where the first line names no file with it.
    Raises UserError, which says with `kinds` what to give.
    """
    paths, ends, labels, places = bytearray(), array("q", [0]), array("q"), array("q")
    numbers: dict[bytes, int] = {}
    base, separator = os.fsencode(path.parent), b""
    real: dict[bytes, bytes] = {}
    try:
        file = open_regular(path)
    except OSError as error:
        raise UserError(f"{key} = {in_words(error)}. Give {kinds}.") from error
    with file as lines:
        head = lines.read(4096)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{key} = {path}: encoded as UTF-16; save it as UTF-8.")
        if b"\0" in head:
            raise UserError(f"{key} = {path}: not a text file. Give {kinds}.")
        lines.seek(0)
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8).rstrip()
            if not line:
                continue
            separator = separator or _separator(base, line)
            if separator == b"\t" and b'"' not in line and b"~" not in line:  # most lists, 10^7 times
                image, found, label = line.partition(separator)
                image, label = image.strip(), label.strip()
            else:
                image, found, label = _split(line, separator)
            if len(ends) == 1:
                _check_first(f"{key} = {path}, line {number}", path.parent, image)
            elif bool(found) != bool(labels):
                raise UserError(
                    f"{key} = {path}, line {number}: {'a' if found else 'no'} label, but the lines before "
                    f"have {'none' if found else 'one'}. Label all images or none."
                )
            if found:
                labels.append(numbers.setdefault(label, len(numbers)))
            paths += image
            ends.append(len(paths))
            folder, slash, name = image.rpartition(b"/")
            there = real.get(folder)
            if there is None:
                there = real[folder] = _without_links(os.path.join(base, folder + slash))  # noqa: PTH118
            places.append(hash(there + b"/" + name))
    _look_for_some(f"{key} = {path}", base, paths, ends)
    return ListedImages(paths, ends, *_sorted_classes(f"{key} = {path}", labels, numbers), places)


def _split(line: bytes, separator: bytes) -> tuple[bytes, bytes, bytes]:
    """Return path, separator and label; the last two are empty without a label."""
    if separator == b"\t":
        image, found, label = line.partition(separator)
    else:
        image, found, label = line.rpartition(separator)
    image, label = image.strip(), label.strip()
    if b'"' in line:
        image, label = _unquoted(image), _unquoted(label)
    if image[:2] == b"~/":
        image = os.fsencode(expanded(os.fsdecode(image)))
    return image, found, label


def _unquoted(field: bytes) -> bytes:
    return field[1:-1] if len(field) > 1 and field[:1] == field[-1:] == b'"' else field


def _separator(base: bytes, line: bytes) -> bytes:
    """Return what separates the path from the label, by the first line of a list."""
    if b"\t" not in line and not _is_file(base, _split(line, b"\t")[0]):
        for separator in (b",", b" "):
            image, found, _ = _split(line, separator)
            if found and _is_file(base, image):
                return separator
    return b"\t"


def _without_links(folder: bytes) -> bytes:
    try:
        return os.path.realpath(folder)
    except ValueError:  # NUL, of a file that is no list further down
        return folder


def _check_first(where: str, base: Path, image: bytes) -> None:
    if not _is_file(os.fsencode(base), image):
        raise UserError(
            f"{where}: no such file: {base / os.fsdecode(image)}. Each line is a path, relative to "
            f"{base} or absolute, optionally followed by a tab and a label; there is no header."
        )


def _look_for_some(where: str, base: bytes, paths: bytearray, ends: array[int]) -> None:
    """Log how many of some listed files are missing; raises UserError if most are."""
    count = len(ends) - 1
    some = range(0, count, -(-count // LOOKED_AT) or 1)
    images = [bytes(paths[ends[index] : ends[index + 1]]) for index in some]
    missing = [image for image in images if not _is_file(base, image)]
    if missing:
        words = (
            f"{where}: {len(missing):,} of {len(images):,} lines that were looked at name no file "
            f"({os.fsdecode(missing[0])})."
        )
        if 2 * len(missing) > len(images):
            raise UserError(f"{words} Paths are relative to {os.fsdecode(base)} or absolute.")
        log.warning(words)


def _is_file(base: bytes, image: bytes) -> bool:
    return os.path.isfile(os.path.join(base, image))  # noqa: PTH113, PTH118 (bytes)


def _sorted_classes(
    where: str, labels: array[int], numbers: dict[bytes, int]
) -> tuple[array[int], list[str]]:
    """Return labels and classes in the order of the classes' names, or of their values if all are numbers."""
    found = [os.fsdecode(label) for label in numbers]  # in the order of their first lines
    none = [label for label in found if label.lower() in ("", "nan")]
    if none:
        raise UserError(f"{where}: some labels are {none[0] or 'empty'}. Label all images or none.")
    if all(label.isdecimal() for label in found):
        classes = sorted(found, key=int)
        same = next(((a, b) for a, b in pairwise(classes) if int(a) == int(b)), None)
        if same:
            raise UserError(f"{where}: {same[0]} and {same[1]} are one number; write all labels alike.")
    else:
        classes = sorted(found)
    position = {label: number for number, label in enumerate(classes)}
    renumbered = np.array([position[label] for label in found], dtype=np.int64)
    return array("q", renumbered[np.frombuffer(labels, dtype=np.int64)] if labels else []), classes
