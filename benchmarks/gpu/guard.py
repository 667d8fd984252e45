"""Sections one after the other, each in a process that ends with its share of the time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.results import Results


def run_sections(
    shares: Mapping[str, float],
    command: Callable[[str, float], Sequence[str]],
    results: Results,
    until: float,
    log: Path,
    folder: Path,
) -> None:
    """Run all sections, in the order of `shares`.

    Args:
        shares: the share of each section in the time that is left when it begins: what one saves, or cannot
            use, the others get.
        command: returns the command for a section's name, and for when it will be ended.
        results: where the command adds its rows, and this its end.
        until: when all must have ended, as `time.monotonic` has it.
        log: gets all that the commands print.
        folder: their working directory.
    """
    left = dict(shares)
    for name, share in shares.items():
        start = time.monotonic()
        allowed = max(0.0, until - start) * share / sum(left.values())
        del left[name]
        print(f"{name}: at most {allowed:.0f} s", end=" ", flush=True)
        note = _end_of(command(name, start + allowed), allowed, log, folder)
        seconds = time.monotonic() - start
        results.end(name, seconds, note)
        print(f"– {seconds:.0f} s, {len(results.rows(name))} rows{note and ', ' + note}", flush=True)


def _end_of(command: Sequence[str], allowed: float, log: Path, folder: Path) -> str:
    """Run a command, and return why it has not ended well; empty if it has."""
    with log.open("ab") as output:
        begun = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # so that its own processes can be ended with it
        )
        try:
            code = process.wait(allowed)
        except subprocess.TimeoutExpired:
            return f"cut after {allowed:.0f} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a driver that hangs keeps even a killed process
                process.wait(5)
    if code == 0:
        return ""
    with log.open("rb") as written:
        written.seek(begun)
        lines = written.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"failed with exit code {code}: {last[:200]}"
