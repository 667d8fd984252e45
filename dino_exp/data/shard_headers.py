"""What the headers of a tar shard say: where each image begins, its label, and what is not read."""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from dino_exp.data import shard_labels
from dino_exp.data.image_formats import IMAGE_SUFFIXES
from dino_exp.data.image_scan import is_passed_over
from dino_exp.data.shard_labels import Label, NoClassError, ShardLabels
from dino_exp.data.tar_members import members
from dino_exp.errors import UserError
from dino_exp.regular_file import too_large

MOST_LABEL_BYTES = 2**24
"""Largest label that is read."""
MAPS = frozenset(["seg", "semseg", "segmentation", "mask", "masks", "depth", "normals", "thumb", "thumbnail"])
"""Words between the dots of a name, by which an image beside another one is no photograph."""
MOST_NOTES = 24
"""Most kinds of notes; endings, above all, may be many."""
LINKS = 40
"""Links that are followed one after the other, as many as Linux does."""
WITHOUT_LABEL = f"JSON files without a label ({', '.join(shard_labels.KEYS)})"
"""A note that is worth a line only where no other file has labels."""
_NAMED_ENDING = re.compile(r"\.(?=.*[a-z])[a-z0-9]{1,12}")  # not of photo.jpg?width=800, nor of a date


class Notes:
    """What is not as it seems in some shards: how often, and the first example, by what it is."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[int, str]] = {}

    def add(self, what: str, example: str, count: int = 1) -> None:
        if what not in self.found and len(self.found) >= MOST_NOTES:
            what = "files of further kinds, skipped"
        before, first = self.found.get(what, (0, example))
        self.found[what] = before + count, first


class Shard(NamedTuple):
    """The images of one shard, in the order of its members."""

    names: list[str]
    offsets: array[int]  # first byte of the image in the shard
    lengths: array[int]  # bytes of the image
    labels: list[Label | None]
    notes: Notes


def scan(path: str) -> Shard:
    """Read the headers and labels of a shard.

    Raises UserError where it is compressed, half-written or damaged, and where labels are wrong.
    """
    try:
        with Path(path).open("rb") as file:
            return _Scan(file, path).shard()
    except OSError as error:
        raise UserError(f"shard {path}: cannot be read: {error.strerror or error}.") from error


class _Scan:
    """What is found in one shard, in the order of its members."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file, self._path = file, path
        self._names: list[str] = []
        self._offsets, self._lengths = array("q"), array("q")
        self._labels, self._notes = ShardLabels(), Notes()
        self._links: dict[str, str] = {}
        self._linked: list[tuple[tarfile.TarInfo, int | None]] = []  # of an image its index, of a label None

    def shard(self) -> Shard:
        for member in members(self._file, self._path):
            if member.type != tarfile.DIRTYPE:
                self._take(member)
        missing = self._take_linked() if self._linked else set()
        skipped = missing | _beside_others(self._path, self._names, missing, self._notes)
        names, offsets, lengths = self._names, self._offsets, self._lengths
        if skipped:
            kept = [index for index in range(len(names)) if index not in skipped]
            names = [names[index] for index in kept]
            offsets, lengths = (array("q", [values[i] for i in kept]) for values in (offsets, lengths))
        labels, unused = self._labels.of(self._path, names)
        if unused:
            self._note("labels of no image in their shard, ignored", unused[0], len(unused))
        return Shard(names, offsets, lengths, labels, self._notes)

    def _take(self, member: tarfile.TarInfo) -> None:
        name = _normal(member.name)
        ending = _ending(name)
        is_link = member.type in (tarfile.LNKTYPE, tarfile.SYMTYPE)
        is_image = ending in IMAGE_SUFFIXES
        if is_link:
            self._links[name] = _target(member)
        if is_passed_over(name):
            if is_image:
                self._note("hidden images and those of system folders, skipped", name)
        elif not is_image and ending not in shard_labels.ENDINGS:
            if member.isreg():
                known = _NAMED_ENDING.fullmatch(ending)
                self._note(
                    f"files {f'with the ending {ending}' if known else 'without an ending'}, skipped", name
                )
        elif is_link:
            self._linked.append((member, len(self._names) if is_image else None))
            if is_image:
                self._take_image(name, 0, 0)
        elif not member.isreg() or member.issparse():
            self._note("sparse files, devices and the like, skipped", name)
        elif is_image:
            self._take_image(name, member.offset_data, member.size)
        else:
            self._take_label(name, member.offset_data, member.size)

    def _take_linked(self) -> set[int]:
        """Take what links lead to; return the images of which nothing is there."""
        missing = set()
        targets = [_followed(_target(link), self._links) for link, _ in self._linked]
        files = _occurrences(self._file, self._path, set(targets))
        for (link, index), target in zip(self._linked, targets, strict=True):
            name = _normal(link.name)
            if target not in files:
                self._note("links to what is not in their shard, skipped", f"{name} -> {link.linkname}")
                if index is not None:
                    missing.add(index)
                continue
            before = [place for place in files[target] if place[0] < link.offset]
            offset, length = before[-1] if before else files[target][0]
            if index is None:
                self._take_label(name, offset, length)
            else:
                self._offsets[index], self._lengths[index] = offset, length
        return missing

    def _take_image(self, name: str, offset: int, length: int) -> None:
        self._names.append(name)
        self._offsets.append(offset)
        self._lengths.append(length)

    def _take_label(self, name: str, offset: int, size: int) -> None:
        where, ending = f"{self._path}: {name}", _ending(name)
        if size > MOST_LABEL_BYTES:
            raise UserError(f"{where} is no label: it has {too_large(size, MOST_LABEL_BYTES)}.")
        self._file.seek(offset)
        content = self._file.read(size)
        key: str | None = ending
        try:
            if ending == ".json":
                key, label = shard_labels.in_json(content)
            else:
                label = shard_labels.in_file(content)
        except NoClassError as error:
            if ending == ".cls":
                raise UserError(f"{where}: {error}.") from error
            self._note("labels that are no class, ignored", f"{name}: {error}")
            return
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}). Write the shard again.") from error
        if label is not None:
            self._labels.add(name[: -len(ending)] + ending, label)
        else:
            self._note(WITHOUT_LABEL if key is None else "labels that are NaN or -1, ignored", name)

    def _note(self, what: str, example: str, count: int = 1) -> None:
        self._notes.add(what, f"{self._path}: {example}", count)


def _beside_others(path: str, names: Sequence[str], missing: set[int], notes: Notes) -> set[int]:
    """Return the images that are not read because of another one of their sample.

    A sample is what has one name up to the first dot (of the file, not its folder). But dots are in names
    too, as in `video.0001.jpg`, so each image of a sample is read, except masks and the like, and others of
    the same name in another format.
    """
    first: dict[str, int] = {}
    samples: dict[int, list[int]] = {}
    for index, name in enumerate(names):
        if index not in missing:
            one = first.setdefault(_up_to_first_dot(name), index)
            if one != index:
                samples.setdefault(one, [one]).append(index)
    skipped: set[int] = set()
    for sample in samples.values():
        photos = [i for i in sample if MAPS.isdisjoint(_words(names[i]))] or sample
        images = [i for i in photos if _ending(names[i]) != ".npy"] or photos
        formats: dict[str, str] = {}
        read = []
        for index in images:
            stem, ending = os.path.splitext(names[index])  # noqa: PTH122 (10^7 times)
            if formats.setdefault(stem, ending.lower()) == ending.lower():
                read.append(index)
        skipped.update(set(sample).difference(read))
        for what, more, fewer in (
            ("masks, depth maps and thumbnails beside an image, skipped", sample, photos),
            ("arrays beside an image, skipped", photos, images),
            ("images of the same name in another format, skipped", images, read),
        ):
            if len(fewer) < len(more):
                example = min(set(more).difference(fewer))
                notes.add(what, f"{path}: {names[example]} beside {names[read[0]]}", len(more) - len(fewer))
        different = len({names[index] for index in read})
        where = f"{path}: {names[read[-1]]}"
        if different < len(read):
            notes.add(
                "images of the same name as an earlier one in their shard, all read",
                where,
                len(read) - different,
            )
        if different > 1:
            notes.add(
                "images that share their name up to the first dot with another one (one sample of the "
                "webdataset package), each read as one",
                where,
                len(read),
            )
    return skipped


def _up_to_first_dot(name: str) -> str:
    dot = name.find(".", name.rfind("/") + 1)
    return name if dot < 0 else name[:dot]


def _words(name: str) -> list[str]:
    """Return the words between the dots of the name of a file."""
    return re.split(r"[^a-z]+", name[name.rfind("/") + 1 :].lower().partition(".")[2].rpartition(".")[0])


def _normal(name: str) -> str:
    """Return the name of a member without `./`, a `/` at the start, and other detours."""
    if name[:1] in (".", "/") or "//" in name or "/." in name:
        name = posixpath.normpath(name).lstrip("/")
    return name


def _ending(name: str) -> str:
    base = name[name.rfind("/") + 1 :]
    dot = base.rfind(".")
    return base[dot:].lower() if dot > 0 else ""


def _target(link: tarfile.TarInfo) -> str:
    """Return the name of the member that a hard or symbolic link means."""
    if link.issym():
        return _normal(posixpath.join(posixpath.dirname(_normal(link.name)), link.linkname))
    return _normal(link.linkname)


def _followed(name: str, links: dict[str, str]) -> str:
    for _ in range(LINKS):
        if name not in links:
            break
        name = links[name]
    return name


def _occurrences(file: IO[bytes], path: str, wanted: set[str]) -> dict[str, list[tuple[int, int]]]:
    """Return the offsets and lengths of the files with the wanted names: of appended archives several."""
    found: dict[str, list[tuple[int, int]]] = {}
    for member in members(file, path):
        if member.isreg() and not member.issparse() and _normal(member.name) in wanted:
            found.setdefault(_normal(member.name), []).append((member.offset_data, member.size))
    return found
