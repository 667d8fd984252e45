"""Atomic writes of files and folders: what a failure, a kill and another writer leave."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

import pytest

from dino_exp import atomic
from dino_exp.atomic import complete_folder, is_locked, write_atomically
from tests.programs import Program, run_program

KILLED = """
import os, signal, sys
from pathlib import Path
from dino_exp.atomic import complete_folder, write_atomically
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
folder = Path(sys.argv[1])
if sys.argv[2] == "file":
    write_atomically(folder / "last.pt", lambda file: file.write(b"half"))
else:
    with complete_folder(folder / "export") as temporary:
        (temporary / "half").write_text("half")
"""
WRITING = """
import sys, time
from pathlib import Path
from dino_exp.atomic import complete_folder, write_atomically
def write(file):
    with complete_folder(Path(sys.argv[1]) / "slow") as temporary:
        (temporary / "part").write_text("complete")
        print("writing", flush=True)
        while not Path(sys.argv[2]).exists():
            time.sleep(0.01)
    file.write(b"complete")
write_atomically(Path(sys.argv[1]) / "slow.pt", write)
"""
OURS = f"{atomic.HOST}{'0' * 24}.partial"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    write_atomically(file, lambda out: out.write(b"whole"))

    def broken(out: IO[bytes]) -> NoReturn:
        out.write(b"ha")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, broken)
    assert file.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [file]
    (tmp_path / "plain").write_text("")
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the leftovers of two killed writers."""
    (tmp_path / "killed.py").write_text(KILLED)
    folder = tmp_path / "folder"
    for kind in ("file", "folder"):
        killed = run_program(str(tmp_path / "killed.py"), str(folder), kind, folder=tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.output
        (folder / "foreign").touch()
    assert len(list(folder.glob(".*.partial"))) == 1, "the second writer removed what the first had left"
    return folder


def test_only_what_killed_writers_left_is_removed(folder: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / f".last.pt.{OURS}").touch()
    others = {".env.local", ".dvc.lock", ".last.pt.partial", ".last.pt.1a2b", f".last.pt.{OURS}.mine"}
    for name in others:
        (folder / name).touch()
    (folder / f".link.{OURS}").symlink_to(precious)
    (tmp_path / "writing.py").write_text(WRITING)
    living = Program(str(tmp_path / "writing.py"), str(folder), str(tmp_path / "finish"), folder=tmp_path)
    living.until_it_says("writing")

    write_atomically(folder / "last.pt", lambda file: file.write(b"complete"))
    (tmp_path / "finish").touch()
    assert living.wait() == 0, living.output
    left = {path.name for path in folder.iterdir()}
    assert left == others | {"foreign", "last.pt", f".link.{OURS}", "slow", "slow.pt"}
    assert (folder / "slow" / "part").read_text() == "complete"
    assert len(list(precious.iterdir())) == 1


def test_what_another_host_is_writing_is_left_until_it_is_old(tmp_path: Path) -> None:
    for name, age in (("new", 0), ("old", atomic.ABANDONED_SECONDS + 60)):
        part = tmp_path / f".{name}.{'f' * 32}.partial" / "values"
        part.parent.mkdir()
        part.touch()
        then = part.stat().st_mtime - age
        for path in (part, part.parent):
            os.utime(path, (then, then))
    write_atomically(tmp_path / "file", lambda file: file.write(b""))
    assert {path.name.split(".")[1] for path in tmp_path.glob(".*")} == {"new"}


def test_a_folder_replaces_an_earlier_one_or_nothing(tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    for target in (tmp_path / "plain", tmp_path / "link"):
        behind.mkdir(exist_ok=True)
        (behind / "precious").touch()
        if target.name == "link":
            target.symlink_to(behind)
        else:
            target.mkdir()
            (target / "old").touch()
        before = sorted(target.iterdir())
        with suppress(ValueError), complete_folder(target) as temporary:
            (temporary / "new").touch()
            raise ValueError("half-way")
        with complete_folder(target) as temporary:
            pass
        assert sorted(target.iterdir()) == before
        with complete_folder(target) as temporary:
            (temporary / "new").touch()
        assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in behind.iterdir()] == ["precious"]
    assert {path.name for path in tmp_path.iterdir()} == {"behind", "plain", "link"}


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("ä" * 127)
    write_atomically(file, lambda out: out.write(b"complete"))
    assert list(tmp_path.iterdir()) == [file]


def test_asking_for_a_lock_creates_nothing_and_follows_no_link(tmp_path: Path) -> None:
    file, link = tmp_path / "mine", tmp_path / ".lock"
    assert not is_locked(link)
    assert list(tmp_path.iterdir()) == []
    file.write_text("precious")
    link.symlink_to(file)
    assert not is_locked(link)
    assert file.read_text() == "precious"
