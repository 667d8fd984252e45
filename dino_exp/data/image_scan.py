"""Which entries of a folder are images: the one rule for training, shards and every evaluation.

Images have an ending of `IMAGE_SUFFIXES` in any case, or no ending and the first bytes of an image. Hidden
files and what systems leave in folders are passed over; all other files are counted as skipped. A folder is
a folder whatever its name, and links are followed. Names are bytes, so that neither the result nor its order
depends on the locale.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dino_exp.data.image_formats import IMAGE_SUFFIXES, READERS, START_BYTES, starts_as_image
from dino_exp.regular_file import check_regular

log = logging.getLogger(__name__)

LITTER = frozenset(
    {b"@eadir", b"@tmp", b"#recycle", b"#snapshot", b"@recycle", b"@recently-snapshot"}  # NAS systems
    | {b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b"$recycle.bin", b"system volume information"}
    | {b"__macosx", b"lost+found"}
)
"""Names, in lower case, of what systems leave in folders: thumbnails, deleted files, settings."""
QUIET = frozenset(
    {".txt", ".xml", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log"}
    | {".md", ".rst", ".html", ".htm", ".lst", ".names", ".xmp", ".aae", ".db", ".url"}
    | {".py", ".sh", ".ipynb", ".md5", ".sha1", ".sha256"}
)
"""Endings of annotations and notes, which lie beside images and are not meant as images."""
NO_ENDING, NOWHERE = "without an ending", "that lead nowhere"
MOST_KINDS = 4
"""Most kinds of skipped files that are named."""
LOOKERS = 16
"""Threads that read first bytes: on a network disk most of the time is waiting."""

_DOT = ord(".")
_IMAGE = frozenset(os.fsencode(ending[1:]) for ending in IMAGE_SUFFIXES)
_ENDING = re.compile(rb"(?=.*[a-z])[a-z0-9]{1,12}")  # not of photo.jpg?width=800, nor of a date


class Skipped:
    """The files of a scan that are no images: a count and the first name of each kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, bytes]] = {}

    def add(self, kind: str, paths: list[bytes]) -> None:
        if paths:
            count, first = self._kinds.get(kind, (0, paths[0]))
            self._kinds[kind] = count + len(paths), min(first, *paths)

    def example(self, kind: str) -> str | None:
        """Return the first name of a kind: .tar."""
        return os.fsdecode(self._kinds[kind][1]) if kind in self._kinds else None

    def words(self, also: frozenset[str] = frozenset()) -> str:
        """Return what was skipped and what would read it: "3 .heic (cat/IMG_1.heic); pip install ...".

        also: kinds of `QUIET` that are named too.
        """
        kinds = [(-count, kind, first) for kind, (count, first) in self._kinds.items()]
        said = sorted(each for each in kinds if each[1] not in QUIET - also)
        named = [f"{-count:,} {kind} ({os.fsdecode(first)})" for count, kind, first in said[:MOST_KINDS]]
        rest = -sum(count for count, _, _ in said[MOST_KINDS:])
        if rest:
            named.append(f"{rest:,} others")
        readers = [f"{READERS[kind]} reads {kind}" for _, kind, _ in said[:MOST_KINDS] if kind in READERS]
        return "; ".join([", ".join(named), *readers])

    def say(self, key: str, folder: Path) -> None:
        """Log what was skipped, if anything, once; key: the setting that names the folder."""
        words = self.words()
        if words:
            _say_once(f"{key} = {folder}: skipped {words}.")


@cache
def _say_once(message: str) -> None:
    """Log a message; an evaluation looks at its files when it checks its settings and again when it runs."""
    log.warning("%s", message)


class Folder(NamedTuple):
    """A folder and the sorted names of what is in it."""

    prefix: bytes
    """Its path relative to where the walk began, with "/" at the end; empty for that folder itself."""
    real: bytes
    """Its path without links."""
    images: list[bytes]
    folders: list[bytes]


def is_passed_over(path: str) -> bool:
    """Return whether a relative path, of a file or in an archive, is or lies in something to pass over."""
    parts = os.fsencode(path).split(b"/")
    return any((part[:1] == b"." and part not in (b".", b"..")) or part.lower() in LITTER for part in parts)


def is_image(path: Path) -> bool:
    """Return whether a file counts as an image by its ending, or without one by its first bytes."""
    head, _, tail = os.fsencode(path.name.lower()).rpartition(b".")
    if head and _ENDING.fullmatch(tail):
        return tail in _IMAGE
    return starts_as_image(_start(os.fsencode(path)))


def images_in(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted; none if it is missing."""
    if not folder.is_dir():
        return []
    return [folder / os.fsdecode(name) for name in next(walk(folder, Skipped())).images]


def walk(top: Path, skipped: Skipped) -> Iterator[Folder]:
    """Yield a folder and all below it, each before those in it, in the order of the names' bytes.

    A link to a folder that it is in is not followed. Raises OSError for a folder that cannot be read.
    """
    start = os.fsencode(top)
    waiting: list[tuple[bytes, bytes, frozenset[bytes]]] = [(b"", os.path.realpath(start), frozenset())]
    while waiting:
        prefix, real, above = waiting.pop()
        images, folders = _entries(os.path.join(start, prefix), prefix, skipped)  # noqa: PTH118 (bytes)
        yield Folder(prefix, real, images, sorted(folders))
        above |= {real}
        for name in sorted(folders, reverse=True):
            inner = os.path.join(real, name)  # noqa: PTH118 (bytes)
            if folders[name]:
                inner = os.path.realpath(inner)
            if inner not in above:
                waiting.append((prefix + name + b"/", inner, above))


def _entries(folder: bytes, prefix: bytes, skipped: Skipped) -> tuple[list[bytes], dict[bytes, bool]]:
    """Return the sorted names of the images in a folder, and by name of a folder whether it is a link."""
    images: list[bytes] = []
    folders: dict[bytes, bool] = {}
    others: dict[bytes, list[bytes]] = {}  # by ending
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == _DOT:
                continue
            try:
                is_folder = entry.is_dir()
            except OSError:  # a link to itself, or into what must not be read
                is_folder = False
            if is_folder:
                if name.lower() not in LITTER:
                    folders[name] = entry.is_symlink()
                continue
            head, _, tail = name.lower().rpartition(b".")
            if head and tail in _IMAGE:
                images.append(name)
            elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110 (bytes)
                skipped.add(NOWHERE, [prefix + name])
            else:
                others.setdefault(tail if head else b"", []).append(name)
    unsure: list[bytes] = []
    for tail, names in others.items():
        kept = [name for name in names if name.lower() not in LITTER]
        if _ENDING.fullmatch(tail):
            skipped.add(f".{tail.decode()}", [prefix + name for name in kept])
        else:
            unsure += kept
    if unsure:
        images += _images_by_content(folder, unsure, prefix, skipped)
    images.sort()
    return images, folders


def _images_by_content(folder: bytes, names: list[bytes], prefix: bytes, skipped: Skipped) -> Iterator[bytes]:
    """Yield those of the files that have the first bytes of an image."""
    parts = [names[number::LOOKERS] for number in range(min(LOOKERS, len(names)))]
    with ThreadPoolExecutor(LOOKERS) as pool:
        starts = pool.map(lambda part: [_start(folder + b"/" + name) for name in part], parts)
        for part, starts_of_part in zip(parts, starts, strict=True):
            for name, start in zip(part, starts_of_part, strict=True):
                if starts_as_image(start):
                    yield name
                elif b"\0" in start or not start.isascii():  # not a text such as README
                    skipped.add(NO_ENDING, [prefix + name])


def _start(path: bytes) -> bytes:
    """Return the first bytes of a file; zeros if it cannot be read."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            check_regular(os.fstat(file), os.fsdecode(path))
            return os.read(file, START_BYTES)
        finally:
            os.close(file)
    except OSError:
        return bytes(START_BYTES)
