"""The manifest: atomic writes, and one writer at a time."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from dino_exp.errors import UserError
from dino_exp.runs.manifest import Entry, Manifest, changing


def a_manifest(folder: Path) -> Manifest:
    runs = {"a": Entry(["trainer.seed=0"], "1" * 64, "12_0", ["9_0", "12_0"], 1, True)}
    return Manifest(folder, "slurm", {"partition": None, "sbatch": {"exclude": "n1"}}, runs)


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    manifest = a_manifest(tmp_path)
    manifest.save()
    assert Manifest.load(tmp_path) == manifest


def test_a_failed_write_keeps_the_old_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = a_manifest(tmp_path)
    manifest.save()
    before = Manifest.path(tmp_path).read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    manifest.runs["b"] = Entry([], "2" * 64)
    with pytest.raises(OSError, match="No space left"):
        manifest.save()
    assert Manifest.path(tmp_path).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_several_writers_lose_no_run(tmp_path: Path) -> None:
    Manifest(tmp_path).save()

    def add(writer: int) -> None:
        for number in range(5):
            with changing(tmp_path):
                manifest = Manifest.load(tmp_path)
                manifest.runs[f"{writer}-{number}"] = Entry([], "")
                manifest.save()

    threads = [threading.Thread(target=add, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Manifest.load(tmp_path).runs) == 20


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json there; give the folder of a sweep"):
        Manifest.load(tmp_path)
    assert Manifest.load_or_new(tmp_path).runs == {}


def test_the_fields_of_the_file(tmp_path: Path) -> None:
    a_manifest(tmp_path).save()
    content = json.loads(Manifest.path(tmp_path).read_text())
    assert content["runs"]["a"]["job"] == "12_0"
    assert set(content) == {"format", "launcher", "settings", "runs"}
