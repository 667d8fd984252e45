"""What the headers of a tar shard say: where each image begins, its label, and what is not read."""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from dino_exp.data import shard_labels
from dino_exp.data.shard_labels import Label, NoClassError, ShardLabels
from dino_exp.data.source import IMAGE_SUFFIXES
from dino_exp.errors import UserError
from dino_exp.regular_file import too_large

MOST_LABEL_BYTES = 2**24
"""Largest label, and largest name or attributes of a member, that is read."""
MAPS = frozenset(["seg", "semseg", "segmentation", "mask", "masks", "depth", "normals", "thumb", "thumbnail"])
"""Words between the dots of a name, by which an image beside another one is no photograph."""
LONGEST_NAME = 4096
"""Characters of the longest name of a member, as Linux has it for a path."""
LINKS = 40
"""Links that are followed one after the other, as many as Linux does."""
WITHOUT_LABEL = f"JSON files without a label ({', '.join(shard_labels.KEYS)})"
"""A note that is worth a line only where no other file has labels."""
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"PK\x03\x04": ("zip", "unzip"),
}
"""First bytes of compressed files, with the format and what unpacks it."""
_OF_SYSTEMS = re.compile(r"(?:^|/)(?:\.(?!\./)|__MACOSX/|@eaDir/)")
_OCTAL = re.compile(rb"[0-7]+")
_ZEROS = bytes(2**20)


class Notes:
    """What is not as it seems in some shards: how often, and the first example, by what it is."""

    def __init__(self, found: dict[str, tuple[int, str]] | None = None) -> None:
        self.found = found or {}

    def add(self, what: str, example: str, count: int = 1) -> None:
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
            return _scan(file, path)
    except OSError as error:
        raise UserError(f"shard {path}: cannot be read: {error.strerror or error}.") from error


def _scan(file: IO[bytes], path: str) -> Shard:
    names: list[str] = []
    offsets, lengths = array("q"), array("q")
    labels, notes = ShardLabels(), Notes()
    links: dict[str, str] = {}
    linked_images: list[tuple[int, str]] = []
    linked_labels: list[str] = []
    for member in _members(file, path):
        name = _normal(member.name)
        if member.type == tarfile.DIRTYPE:
            continue
        is_link = member.type in (tarfile.LNKTYPE, tarfile.SYMTYPE)
        if is_link:
            links[name] = _target(name, member)
        ending = _ending(name)
        is_image = ending in IMAGE_SUFFIXES
        if _is_passed_over(name):
            if is_image:
                notes.add("hidden images and those of system folders, skipped", f"{path}: {name}")
        elif not is_image and ending not in shard_labels.ENDINGS:
            if member.isreg():
                what = f"files with the ending {ending}" if ending else "files without an ending"
                notes.add(f"{what}, not read", f"{path}: {name}")
        elif is_link and is_image:
            linked_images.append((len(names), name))
            names.append(name)
            offsets.append(0)
            lengths.append(0)
        elif is_link:
            linked_labels.append(name)
        elif not member.isreg() or member.issparse():
            notes.add("sparse files, devices and the like, skipped", f"{path}: {name}")
        elif is_image:
            names.append(name)
            offsets.append(member.offset_data)
            lengths.append(member.size)
        else:
            _take_label(file, path, name, ending, member.offset_data, member.size, labels, notes)
    missing = set()
    if links:
        targets = _followed(file, path, links)
        for index, name in linked_images:
            if name in targets:
                offsets[index], lengths[index] = targets[name]
            else:
                missing.add(index)
        for name in linked_labels:
            if name in targets:
                _take_label(file, path, name, _ending(name), *targets[name], labels, notes)
        for name in (*(name for _, name in linked_images), *linked_labels):
            if name not in targets:
                where = f"{path}: {name} -> {links[name]}"
                notes.add("links to what is not in their shard, skipped", where)
    skipped = missing | _beside_others(path, names, missing, notes)
    if skipped:
        kept = [index for index in range(len(names)) if index not in skipped]
        names = [names[index] for index in kept]
        offsets, lengths = (array("q", [values[i] for i in kept]) for values in (offsets, lengths))
    of_images, unused = labels.of(path, names)
    if unused:
        notes.add("labels of no image in their shard, ignored", f"{path}: {unused[0]}", len(unused))
    return Shard(names, offsets, lengths, of_images, notes)


def _take_label(
    file: IO[bytes],
    path: str,
    name: str,
    ending: str,
    offset: int,
    size: int,
    labels: ShardLabels,
    notes: Notes,
) -> None:
    where = f"{path}: {name}"
    if size > MOST_LABEL_BYTES:
        raise UserError(f"{where} is no label: it has {too_large(size, MOST_LABEL_BYTES)}.")
    file.seek(offset)
    content = file.read(size)
    key: str | None = ending
    try:
        if ending == ".json":
            key, label = shard_labels.in_json(content)
        else:
            label = shard_labels.in_file(content)
    except NoClassError as error:
        if ending == ".cls":
            raise UserError(f"{where}: {error}.") from error
        notes.add("labels that are no class, ignored", f"{where}: {error}")
        return
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}). Write the shard again.") from error
    if label is not None:
        labels.add(name[: -len(ending)] + ending, label)
    elif key is None:
        notes.add(WITHOUT_LABEL, where)
    else:
        notes.add("labels that are NaN or -1, for none", where)


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
                "images with the name of an earlier one in their shard, all read",
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


def _is_passed_over(name: str) -> bool:
    return _OF_SYSTEMS.search(name) is not None


def _target(name: str, link: tarfile.TarInfo) -> str:
    """Return the name of the member that a hard or symbolic link means."""
    if link.issym():
        return _normal(posixpath.join(posixpath.dirname(name), link.linkname))
    return _normal(link.linkname)


def _followed(file: IO[bytes], path: str, links: dict[str, str]) -> dict[str, tuple[int, int]]:
    """Return the offset and length of the file that each link leads to, for those that lead to one."""
    ends = {}
    for name in links:
        end = name
        for _ in range(LINKS):
            if end not in links:
                break
            end = links[end]
        ends[name] = end
    wanted = set(ends.values())
    files = {}
    for member in _members(file, path):
        if member.isreg() and not member.issparse() and _normal(member.name) in wanted:
            files[_normal(member.name)] = member.offset_data, member.size
    return {name: files[end] for name, end in ends.items() if end in files}


def _members(file: IO[bytes], path: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive and of others that were appended to it behind its end marker."""
    file.seek(0)
    start = file.read(512)
    for magic, (name, unpack) in COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"shard {path}: compressed with {name}, so it cannot be read in any order. Unpack it with "
                f"{unpack}, into a .tar file."
            )
    found, begin, last, position = False, 0, 0, 0  # last: where the part of the last member begins
    while True:
        file.seek(begin)
        try:
            archive = _open(file)
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined] # or it keeps an object for each
                if member.size < 0:  # tarfile would come back to earlier headers again and again
                    raise tarfile.ReadError(f"{member.name} has a negative size")
                if len(member.name) > LONGEST_NAME:
                    raise tarfile.ReadError(f"a name of {len(member.name):,} characters")
                found, last = True, begin
                yield member
            position = archive.offset
        except OSError:
            raise
        except Exception as error:  # damaged headers raise every kind of error
            reason = f"{error}; it begins with {start[:20]!r}" if not found else str(error)
            raise half_written(path, reason) from error
        # tarfile stops at anything that is not a header; a complete file has zeros there.
        file.seek(position)
        closing = file.read(tarfile.BLOCKSIZE)
        if closing != bytes(tarfile.BLOCKSIZE):
            at = f"at byte {position:,}"
            damaged = f"a damaged header {at}" if last == begin else f"no tar archive behind its end {at}"
            raise half_written(path, damaged if closing else "it has no end marker")
        following = _next_part(file, position)
        if following is None:
            break
        begin = following
    if not found and file.seek(0, 2) > tarfile.RECORDSIZE:
        raise half_written(path, "it has only zeros")


def _open(file: IO[bytes]) -> tarfile.TarFile:
    headers = cast(IO[bytes], _Headers(file))
    return tarfile.open(
        fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape", tarinfo=_Member
    )


class _Member(tarfile.TarInfo):
    """A member of which only what is needed here is read, in a third of the time where it is a plain file."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _Member:
        if buf[257:263] == b"ustar\0" or (buf[257:263] == b"ustar " and not buf[345]):
            total, size = buf[148:156].strip(b" \0"), buf[124:136].strip(b" \0")
            if buf[156:157] in (b"0", b"\0") and _OCTAL.fullmatch(total) and _OCTAL.fullmatch(size):
                name, prefix = (buf[a:b].partition(b"\0")[0] for a, b in ((0, 100), (345, 500)))
                if name[-1:] != b"/" and int(total, 8) == sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
                    member = cls((prefix + b"/" + name if prefix else name).decode(encoding, errors))
                    member.size = int(size, 8)
                    return member
        return super().frombuf(buf, encoding, errors)


def _next_part(file: IO[bytes], position: int) -> int | None:
    """Return where the first block from `position` on that is not zero begins; None for the end."""
    file.seek(position)
    while block := file.read(len(_ZEROS)):
        if block != (_ZEROS if len(block) == len(_ZEROS) else bytes(len(block))):
            zeros = len(block) - len(block.lstrip(b"\0"))
            return position + zeros - zeros % tarfile.BLOCKSIZE
        position += len(block)
    return None


class _Headers:
    """What tarfile may read of a shard: blocks, and long names and attributes up to a limit."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_LABEL_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def half_written(path: str, reason: str) -> UserError:
    """Return the error for a shard that is not complete."""
    return UserError(f"shard {path}: half-written or damaged ({reason}). Copy or write it again.")
