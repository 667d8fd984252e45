"""Standard streams that last: processes that import nothing else and print what ends others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dino_exp.streams import visible

DISK_FULL = Path("/dev/full")


def program(code: str, **environment: str) -> list[str]:
    variables = [f"{name}={value}" for name, value in environment.items()]
    return ["env", *variables, sys.executable, "-c", f"from dino_exp.streams import *; protect()\n{code}"]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\x1b[2J\x1b]8;;http://a\x07b", r"\x1b[2J\x1b]8;;http://a\x07b"),
        ("a\rb\bc\x7f\x9b31m\x85", r"a\x0db\x08c\x7f\x9b31m\x85"),
        ("\u202egnp.exe\u2066 \u2028x", r"\u202egnp.exe\u2066 \u2028x"),
        ("\udce9t\udce9 \ud800", r"\xe9t\xe9 \ud800"),
        ("lines\n\tand [tabs], é, τ → ∞", "lines\n\tand [tabs], é, τ → ∞"),
    ],
)
def test_what_a_terminal_would_obey_is_made_visible(text: str, seen: str) -> None:
    assert visible(text) == seen


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii:strict", b"tau -> ... \\xe9 \\xe9 \\u2501 \\U0001f600\n"),
        ("cp1252:strict", b"tau -> \x85 \xe9 \\xe9 \\u2501 \\U0001f600\n"),
        ("utf-8:strict", "τ → … é \\xe9 ━ 😀\n".encode()),
    ],
)
def test_what_an_encoding_lacks_is_replaced(encoding: str, printed: bytes) -> None:
    code = r'print("\u03c4 \u2192 \u2026 \xe9 \udce9 \u2501 \U0001f600"); print("\udce9", file=sys.stderr)'
    done = subprocess.run(program(code, PYTHONIOENCODING=encoding), capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, b"\\xe9\n")


def test_a_reader_that_goes_away_ends_nothing() -> None:
    code = 'for _ in range(20_000): print("a line")\nprint(failure().strerror, file=sys.stderr)'
    process = subprocess.Popen(program(code), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b"Broken pipe\n"
    assert process.returncode == 0


@pytest.mark.skipif(not DISK_FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_ends_nothing() -> None:
    code = 'print("lost"); print(failure().strerror, file=sys.stderr); print("no newline", end="")'
    with DISK_FULL.open("w") as full:
        done = subprocess.run(program(code), stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (0, b"No space left on device\n")
        assert subprocess.run(program(code), stdout=full, stderr=full).returncode == 0


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        f'file = open({str(tmp_path / "record")!r}, "w")\n'
        'print("out"); print("err", file=sys.stderr); os.write(1, b"x"); os.system("echo child")\n'
        'file.write("the record")'
    )
    closed = " ".join(f"{number}>&-" for number in (0, 1, 2))
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *program(code)])
    assert done.returncode == 0
    assert (tmp_path / "record").read_text() == "the record"


def test_a_stream_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen(program('print("a" * 1_000_000)'), stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        assert len(output.read()) == 1_000_001
    assert process.communicate()[1] == b""
    assert process.returncode == 0
