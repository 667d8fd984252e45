"""Pickles from other people, read without running any code: containers, numbers, text and arrays."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from dino_exp.errors import UserError


def load(path: Path) -> Any:
    """Return a pickle's content; text of Python 2 is read as latin1, arrays are of a subclass of np.ndarray.

    Raises UserError for a file that is not a pickle or cannot be read, and, naming it, for anything but
    dicts, lists, tuples, sets, numbers, text, bytes and plain numpy arrays.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except _RefusedError as error:
        raise UserError(
            f"{path}: holds {error}, which a list of images does not need and which could run a program; "
            "it was not run. Download the file from the data set's authors."
        ) from error
    except Exception as error:  # damaged bytes raise errors of every kind
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        raise UserError(f"{path}: not a readable pickle ({reason}).") from error


class _RefusedError(Exception):
    """A name that the pickle may not use; the message is the name."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = {"__builtin__": "builtins"}.get(module, module.replace("numpy._core", "numpy.core"))
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


class _Type:
    """A dtype reduced to kind, size and byte order: a forged one could crash numpy, or worse."""

    def __init__(self, name: str, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"b1|[biufSU]\d{1,4}", name):
            raise _RefusedError(f"a numpy array of type {name}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _Array(np.ndarray):
    """An array that takes its values from bytes, with a checked type."""

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, fortran, raw = state
        if not isinstance(kind, _Type) or not isinstance(raw, bytes | str):
            raise _RefusedError("a numpy array of objects")
        super().__setstate__((version, shape, kind.dtype, fortran, raw))  # type: ignore[arg-type]  # numpy takes str too


def _reconstruct(*_: object) -> _Array:
    return _Array((0,), np.uint8)


def _scalar(kind: _Type, raw: bytes | str) -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return np.frombuffer(raw, kind.dtype)[0]


def _from_buffer(raw: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise _RefusedError(f"text in the codec {codec}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytes"): _no_bytes,  # how Python 3 writes b"" for Python 2
    ("_codecs", "encode"): _encode,  # and how it writes other bytes
    ("numpy", "ndarray"): None,  # an argument that _reconstruct ignores
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
}
