"""Where the image of each row lies in an arrow file, and parquet files made into arrow files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock
from pyarrow import parquet

from dino_exp.atomic import make_folder, write_atomically
from dino_exp.data.file_ranges import stamps
from dino_exp.data.labeled import short_digest
from dino_exp.errors import UserError, in_words, known_words
from dino_exp.paths import cache_root

log = logging.getLogger(__name__)

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""The last bytes of a complete arrow file. Readers do not notice a file that was cut between two batches."""
ROWS = 256
"""Rows of a parquet file that are unpacked at once."""
IMAGE = "image"
"""The one column of an unpacked file: the bytes of an image, and the path of the file that has them."""
UNPACKED = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_binary())])
OFFSET_BYTES = {pa.binary(): 4, pa.string(): 4, pa.large_binary(): 8, pa.large_string(): 8}
DAMAGES = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError)
"""What pyarrow and json raise for damaged files."""


class Ranges(NamedTuple):
    """Where the images of N rows lie in their file."""

    starts: np.ndarray  # int64 (N,)
    lengths: np.ndarray  # int64 (N,): 0 for a row without an image
    named: np.ndarray  # bool (N,): the bytes are not the image, but the path of a file that has it


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raise what reading a file raises as a UserError, which calls only damage damage."""
    try:
        yield
    except MemoryError as error:
        raise UserError(f"{file}: not enough memory.") from error
    except DAMAGES as error:
        if known_words(error) and isinstance(error, OSError):
            named = OSError(error.errno, error.strerror, error.filename or str(file))  # Arrow does not say it
            raise UserError(f"{in_words(named)}.") from error
        text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise UserError(
            f"{file}: half-written, damaged or not what its name says ({text[:300]}). Write it again."
        ) from error


def schema_of(file: Path) -> Any:
    """Return the columns of an arrow or parquet file, and their types."""
    with reading(file):
        stamps([file])  # refuses a pipe, for which Arrow would wait
        if file.suffix == ".arrow":
            _check_end(file)
            schema = pa.ipc.open_stream(_mapped(file)).schema
        else:
            schema = parquet.read_schema(file)
        if any("\0" in name for name in schema.names):
            raise ValueError("a NUL in the name of a column")
        return schema


def values_of(file: Path, column: str) -> Any:
    """Return one column of an arrow or parquet file."""
    with reading(file):
        if file.suffix == ".arrow":
            stream = pa.ipc.open_stream(_mapped(file))
            kind = stream.schema.field(column).type
            values = pa.chunked_array([batch.column(column) for batch in stream], kind)
        else:
            values = parquet.ParquetFile(file).read(columns=[column]).column(column)
        values.validate(full=True)  # a damaged text may lead out of the file
        return values


def ranges_of(file: Path, column: str) -> Ranges:
    """Return where the images in a column of an arrow file lie."""
    with reading(file):
        whole = _mapped(file)
        parts = [_ranges(batch.column(column), whole) for batch in pa.ipc.open_stream(whole)]
        empty = Ranges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))
        return Ranges(*map(np.concatenate, zip(empty, *parts, strict=True)))


def paths_of(file: Path, column: str) -> list[bytes | None]:
    """Return the path that each row of an arrow file has for its image, None without one."""
    with reading(file):
        found: list[bytes | None] = []
        for batch in pa.ipc.open_stream(_mapped(file)):
            paths = _parts(batch.column(column))[1]
            found += [None] * len(batch) if paths is None else paths.cast(pa.large_binary()).to_pylist()
        return found


def unpacked(file: Path, column: str) -> Path:
    """Return an arrow file with the column IMAGE of a parquet file's images, written to the cache once."""
    folder = cache_root() / "huggingface"
    with reading(file):
        made = folder / f"{file.stem[:80]}-{short_digest(stamps([file]), column)}.arrow"
    try:
        if not _is_complete(made):
            make_folder(folder)
            with FileLock(made.with_suffix(".lock")):  # the first process unpacks, the others wait
                if not _is_complete(made):
                    log.info("Unpacking %s into %s", file, made)
                    write_atomically(made, lambda output: _unpack(file, column, output))
    except OSError as error:
        raise UserError(
            f"{in_words(error)}. Parquet is unpacked into {folder}; set XDG_CACHE_HOME to another folder, "
            "which can be written and has room for the images."
        ) from error
    return made


def holds_bytes(kind: Any) -> bool:
    """Return whether values of this type can be files: bytes, or a struct that has them."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return bool(index >= 0 and holds_bytes(kind.field(index).type))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def holds_paths(kind: Any) -> bool:
    """Return whether values of this type can be paths of files: text, or a struct that has one."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("path")
        return bool(index >= 0 and holds_paths(kind.field(index).type))
    return is_text(kind)


def is_text(kind: Any) -> bool:
    """Return whether a type is one of Arrow's three for text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _mapped(file: Path) -> Any:
    with pa.memory_map(str(file)) as mapped:
        return mapped.read_buffer()


def _check_end(file: Path) -> None:
    with file.open("rb") as content:
        content.seek(-min(len(END_OF_STREAM), file.stat().st_size), 2)
        if content.read() != END_OF_STREAM:
            raise ValueError("it has no end marker")


def _is_complete(file: Path) -> bool:
    try:
        _check_end(file)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _parts(images: Any) -> tuple[Any, Any]:
    """Return the bytes and the paths of an array of images, either of them None where there are none."""
    if pa.types.is_struct(images.type):
        fields = dict(zip((field.name for field in images.type), images.flatten(), strict=True))
        return fields.get("bytes"), fields.get("path")
    return (images, None) if holds_bytes(images.type) else (None, images)


def _ranges(images: Any, whole: Any) -> Ranges:
    images.validate()
    (starts, lengths), (paths, path_lengths) = (_spans(part, len(images), whole) for part in _parts(images))
    named = (lengths == 0) & (path_lengths > 0)
    return Ranges(np.where(named, paths, starts), np.where(named, path_lengths, lengths), named)


def _spans(array: Any, count: int, whole: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the first byte in the file, and the number of bytes, of each value; 0 bytes for null."""
    if array is None or not count or pa.types.is_null(array.type):
        return np.zeros(count, np.int64), np.zeros(count, np.int64)
    size = OFFSET_BYTES.get(array.type)
    if size is None:
        raise ValueError(f"images as {array.type}, which are read from parquet alone")
    _, offsets, values = array.buffers()
    ends = np.frombuffer(offsets, f"i{size}")[array.offset :][: count + 1].astype(np.int64)
    lengths = np.diff(ends)
    first = values.address - whole.address if values is not None and values.size else 0
    if ends[0] < 0 or (lengths < 0).any() or ends[-1] > (values.size if values is not None else 0):
        raise ValueError("rows that lead out of the file")
    if not 0 <= first <= first + ends[-1] <= whole.size:
        raise ValueError("compressed rows, which are not read; save_to_disk does not compress")
    lengths[~array.is_valid().to_numpy(zero_copy_only=False)] = 0
    return first + ends[:-1], lengths


def _unpack(file: Path, column: str, output: IO[bytes]) -> None:
    schema = pa.schema([(IMAGE, UNPACKED)])
    with pa.ipc.new_stream(output, schema) as writer:
        for images in _batches(file, column):
            parts = [
                pa.nulls(len(images), pa.large_binary()) if part is None else part.cast(pa.large_binary())
                for part in _parts(images)
            ]
            struct = pa.StructArray.from_arrays(parts, fields=list(UNPACKED))
            writer.write_batch(pa.record_batch([struct], schema=schema))


def _batches(file: Path, column: str) -> Iterator[Any]:
    with reading(file), parquet.ParquetFile(file, page_checksum_verification=True) as rows:
        for batch in rows.iter_batches(ROWS, columns=[column]):
            yield batch.column(column)
