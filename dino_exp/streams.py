"""Standard streams that end no program, and that show control characters instead of obeying them."""

from __future__ import annotations

import codecs
import io
import os
import re
import select
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except tab and newline, separators of lines, marks of writing direction, halves of
surrogate pairs: these stand for the bytes of a name that is not UTF-8."""
_IN_ASCII = {"…": "...", "→": "->", "←": "<-", "−": "-", "–": "-", "±": "+-", "×": "x", "·": "*", "‖": "||"}
_IN_ASCII |= {"≤": "<=", "≥": ">=", "≠": "!=", "“": '"', "”": '"', "’": "'", "λ": "lambda", "τ": "tau"}
"""What is printed where a stream's encoding lacks our own characters."""


def visible(text: str) -> str:
    """Return a text that a terminal only shows: what it would obey is written as an escape, e.g. \\x1b."""
    return _OBEYED.sub(lambda match: _escaped(match[0]), text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # the byte of a file name
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks, as a codec's error handler."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(one) or ascii(one)[1:-1] for one in lacking), error.end


codecs.register_error("dino_exp.in_ascii", _in_ascii)


class _Lasting(io.FileIO):
    """A descriptor to which writing never fails: what cannot be written is dropped."""

    failure: OSError | None = None

    def write(self, content: Any, /) -> int:
        try:
            while (written := super().write(content)) is None:  # made nonblocking by another program
                select.select([], [self], [])
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(content).nbytes
        return written


class _Shown:
    """A text stream for all who print.

    Only consoles of rich write to `rich_proxied_file` itself, since their styles are escape sequences. On a
    terminal a carriage return is obeyed: libraries draw progress bars with it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        self._is_terminal = stream.isatty()

    def write(self, text: str) -> int:
        parts = text.split("\r") if self._is_terminal else [text]
        self.rich_proxied_file.write("\r".join(map(visible, parts)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


_lasting: dict[str, _Lasting] = {}


def protect() -> None:
    """Make this program's output last: call it first in a program, not in a library.

    A reader that goes away, a full disk, a closed terminal or a closed descriptor end nothing and raise
    nothing; neither do characters that the encoding lacks. Streams that somebody has replaced, as tests and
    notebooks do, stay as they are.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:  # closed, and would become the next file we write
        os.set_inheritable(number, True)
    os.close(number)
    os.environ.setdefault("PYTHON_COLORS", "0")  # of tracebacks and argparse from Python 3.13 on, by escapes
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        _lasting[name] = _Lasting(number, "w", closefd=False)
        lasting = io.TextIOWrapper(
            io.BufferedWriter(_lasting[name]),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors="dino_exp.in_ascii",
            line_buffering=True,
        )
        setattr(sys, name, _Shown(cast(TextIO, lasting)))


def failure() -> OSError | None:
    """Return why standard output could not be written, or None if it could."""
    return _lasting["stdout"].failure if "stdout" in _lasting else None
