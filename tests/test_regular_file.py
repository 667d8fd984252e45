"""Pipes, devices and enormous files among a data set's, and names that lead out of its folder."""

import ast
import os
import socket
from pathlib import Path

import pytest

from dino_exp.data.decoding import Decoding
from dino_exp.data.pillow_files import opened_image
from dino_exp.data.source import CorruptImageError, read_image
from dino_exp.regular_file import MOST_BYTES, is_plain_name, path_below
from tests.data.sources import as_file, load, noise
from tests.programs import ROOT

NOT_FILES = "a pipe, socket, device or folder, not a file"


def test_what_is_no_file_is_an_unreadable_image_and_nobody_waits_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "elsewhere.png").write_bytes(as_file(noise(8, 8), "PNG"))
    (folder / "0link.png").symlink_to(tmp_path / "elsewhere.png")  # as data sets are often put together
    os.mkfifo(folder / "1pipe.jpg")
    (folder / "2zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "3socket.jpg"))
    with (folder / "4large.jpg").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    source = load("image_folder", root=folder, val_root=None).train
    assert source.read(0).shape == (3, 8, 8)
    reasons = (NOT_FILES, NOT_FILES, "No such device", "1,073,741,825 bytes, more than the 1,073,741,824")
    for index, reason in enumerate(reasons, start=1):
        with pytest.raises(CorruptImageError, match=f"{index}.*{reason}"):
            source.read(index)
    with pytest.raises(OSError, match=NOT_FILES), opened_image(folder / "1pipe.jpg"):
        pass
    with pytest.raises(CorruptImageError, match="embedded null byte"):
        read_image("a\0b.jpg", Decoding(3))


def test_names_and_paths_that_lead_elsewhere() -> None:
    assert all(map(is_plain_name, ("bear", "a b", "..c", "~", "-x")))
    assert not any(map(is_plain_name, ("", ".", "..", "/bear", "a/b", "../a", "a/", "a\0")))
    assert path_below("/data/set", "train/a.jpg") == "/data/set/train/a.jpg"
    assert path_below("/data/set", "/data/set/a.jpg") == "/data/set/a.jpg"
    outside = ("", ".", "..", "../a.jpg", "x/../../a.jpg", "/etc/passwd", "/data/set2/a.jpg", "/dev/zero")
    assert [path_below("/data/set", path) for path in outside] == [None] * len(outside)
    assert path_below("/", "a.jpg") == "/a.jpg"


def test_only_one_place_hands_files_to_pillow() -> None:
    """Pillow's other readers would get a file that only says that it is a PNG, and one starts Ghostscript."""
    files = [path for name in ("dino_exp", "launchers") for path in (ROOT / name).rglob("*.py")]
    found = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                found[str(path.relative_to(ROOT))] = [keyword.arg for keyword in node.keywords]
            if isinstance(node, ast.ImportFrom) and node.module == "PIL.Image":
                found[str(path.relative_to(ROOT))] = ["imported by itself"]
    assert found == {"dino_exp/data/pillow_files.py": ["formats"]}
