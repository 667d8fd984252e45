"""The members of a tar archive by their headers; what lies between the headers is not read."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO, cast

from dino_exp.errors import UserError

MOST_BYTES = 2**24
"""Most bytes of a long name or of attributes of a member that are read."""
LONGEST_NAME = 4096
"""Characters of the longest name of a member, as Linux has it for a path."""
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
    b"PK\x03\x04": ("zip", "unzip"),
}
"""First bytes of compressed files, with the format and what unpacks it."""
_OCTAL = re.compile(rb"[0-7]+")
_ZEROS = bytes(2**20)


def members(file: IO[bytes], path: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar file, and of archives that were appended to it behind its end marker.

    Raises UserError where it is compressed, half-written or damaged.
    """
    file.seek(0)
    start = file.read(tarfile.BLOCKSIZE)
    for magic, (name, unpack) in COMPRESSED.items():
        if start.startswith(magic) and start[257:262] != b"ustar":  # a member may be named BZhang.jpg
            raise UserError(
                f"shard {path}: compressed with {name}, so it cannot be read in any order. Unpack it with "
                f"{unpack}, into a .tar file."
            )
    found, begin, last = False, 0, 0  # where an archive begins, and the last one that has members
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
            raise _half_written(path, reason) from error
        # tarfile stops at anything that is not a header; a complete file has zeros there.
        file.seek(position)
        closing = file.read(tarfile.BLOCKSIZE)
        if closing != bytes(tarfile.BLOCKSIZE):
            at = f"at byte {position:,}"
            damaged = f"a damaged header {at}" if last == begin else f"no tar archive behind its end {at}"
            raise _half_written(path, damaged if closing else "it has no end marker")
        following = _next_part(file, position)
        if following is None:
            break
        begin = following
    if not found and file.seek(0, 2) > tarfile.RECORDSIZE:
        raise _half_written(path, "it has only zeros")


def _open(file: IO[bytes]) -> tarfile.TarFile:
    headers = cast(IO[bytes], _Headers(file))
    return tarfile.open(
        fileobj=headers, mode="r:", encoding="utf-8", errors="surrogateescape", tarinfo=_Member
    )


class _Member(tarfile.TarInfo):
    """A member of which only what is needed here is read, in a third of the time where it is a plain file."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        is_complete = len(buf) == tarfile.BLOCKSIZE
        if is_complete and (buf[257:263] == b"ustar\0" or (buf[257:263] == b"ustar " and not buf[345])):
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
        if not 0 <= size <= MOST_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _half_written(path: str, reason: str) -> UserError:
    return UserError(f"shard {path}: half-written or damaged ({reason}). Copy or write it again.")
